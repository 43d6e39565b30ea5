//! The server: listener, sessions, accounts, manifests, chunk store, fan-out.
//!
//! [`start`] runs one in this process, for the program itself, for `picloud up` and for tests;
//! [`service::run`] is the program around it. What lies in its data directory is specified in
//! `docs/formats.md`.

pub mod accounts;
pub mod admin;
pub mod clock;
pub mod command;
pub mod config;
pub mod doctor;
pub mod gate;
mod hub;
pub mod log;
mod metrics;
pub mod packs;
mod recent;
pub mod rules;
pub mod service;
mod session;
pub mod store;
mod throttle;
mod web;

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tokio_rustls::TlsAcceptor;

use crate::heap;
use crate::model::{Fingerprint, JoinLink};
use crate::protocol::{ALPN, AcceptError, ServerConnection};
use admin::IdentityError;
use config::Config;
use hub::{ConnectionLimits, Hub};
use session::{Shared, publish_usages};
use store::metadata::Metadata;
use store::{Layout, Store, StoreError};

/// Name and version, for the hello.
const PROGRAM: &str = concat!("picloud-server/", env!("CARGO_PKG_VERSION"));

/// How long nothing must be asked for until the memory is given back that is kept for it.
const REST_PERIOD: Duration = Duration::from_secs(3);

/// How often it is looked whether another process revoked a device.
const NOTICE_PERIOD: Duration = Duration::from_secs(1);

/// How long connections may take to end when the server stops.
const STOP_PATIENCE: Duration = Duration::from_secs(10);

/// How long the listener rests when the system has no descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Connections that wait until they are accepted.
const BACKLOG: u32 = 1024;

/// Why a server cannot run.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The data cannot be opened.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// There is no certificate.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The certificate cannot be used.
    #[error(transparent)]
    Tls(#[from] crate::protocol::TlsError),
    /// The address cannot be listened on.
    #[error("Cannot listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A part of the server ended by itself.
    #[error("The server failed: {0}")]
    Failed(&'static str),
}

/// A server that runs in this process. Dropping it does not stop it: see [`RunningServer::stop`].
#[derive(Debug)]
pub struct RunningServer {
    address: SocketAddr,
    shared: Arc<Shared>,
    stop: watch::Sender<bool>,
    listening: JoinHandle<()>,
    web: Option<(SocketAddr, JoinHandle<()>)>,
}

/// Starts a server; when this returns, it listens.
///
/// # Errors
/// When its data or certificate cannot be opened, or its address cannot be listened on.
pub async fn start(config: Config) -> Result<RunningServer, ServerError> {
    // First: a port that is taken leaves nothing behind. Nobody can connect yet.
    let socket = bind(config.server.listen)?;
    let metrics_listener = match config.metrics.listen {
        Some(address) => {
            let failed = |source| ServerError::Listen { address, source };
            Some(bind(address)?.listen(BACKLOG).map_err(failed)?)
        }
        None => None,
    };
    let opening = tokio::task::spawn_blocking(move || {
        let layout = Layout::create(&config.server.data_dir)?;
        let identity = admin::identity(&config, &layout)?;
        let free_min = config.limits.disk_free_min_mib.saturating_mul(1024 * 1024);
        let store = Store::open(&layout, free_min)?;
        Ok::<_, ServerError>((config, layout, identity, store))
    });
    let opened = opening.await.map_err(|_| ServerError::Failed("opening its data"))?;
    let (config, layout, identity, store) = opened?;
    let acceptor = identity.acceptor(&[ALPN])?;
    let failed = |source| ServerError::Listen { address: config.server.listen, source };
    let listener = socket.listen(BACKLOG).map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    let hub = Hub::new(ConnectionLimits {
        all: config.limits.connections_max,
        per_address: config.limits.connections_per_address_max,
        per_user: config.limits.connections_per_user_max,
    });
    let public = admin::public_address(&config, address.port());
    let fingerprint = identity.fingerprint();
    let shared = Arc::new(Shared::new(config, layout, store, hub, fingerprint, public)?);
    let (stop, stopping) = watch::channel(false);
    let web = match metrics_listener {
        Some(listener) => {
            let at = listener
                .local_addr()
                .map_err(|_| ServerError::Failed("finding out where it answers metrics"))?;
            tracing::info!(address = %at, "answering /metrics and /healthz");
            let web = web::Web::new(Arc::clone(&shared), identity.validity());
            Some((at, tokio::spawn(web.serve(listener))))
        }
        None => None,
    };
    let listening = tokio::spawn(listen_until(Arc::clone(&shared), listener, acceptor, stopping));
    tracing::info!(%address, public = shared.public, %fingerprint, "listening");
    Ok(RunningServer { address, shared, stop, listening, web })
}

/// Takes an address, which fails while another listens there.
fn bind(address: SocketAddr) -> Result<TcpSocket, ServerError> {
    let bind = |address: SocketAddr| -> io::Result<TcpSocket> {
        let socket = match address {
            SocketAddr::V4(_) => TcpSocket::new_v4(),
            SocketAddr::V6(_) => TcpSocket::new_v6(),
        }?;
        // Connections of an earlier run that are closing do not count.
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        Ok(socket)
    };
    let bound = match bind(address) {
        // "[::]" means every address, also on a machine without IPv6.
        Err(error)
            if address.is_ipv6()
                && address.ip().is_unspecified()
                && error.raw_os_error() == Some(rustix::io::Errno::AFNOSUPPORT.raw_os_error()) =>
        {
            bind((Ipv4Addr::UNSPECIFIED, address.port()).into())
        }
        bound => bound,
    };
    bound.map_err(|source| ServerError::Listen { address, source })
}

impl RunningServer {
    /// Returns the address that it listens on, with the real port.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns where `/metrics` and `/healthz` are answered, if they are.
    #[must_use]
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.web.as_ref().map(|(address, _)| *address)
    }

    /// Returns what join links name.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        self.shared.fingerprint
    }

    /// Returns how many connections there are, those that are not let in yet too.
    #[must_use]
    pub fn connection_count(&self) -> usize {
        self.shared.hub.connection_count()
    }

    /// Returns whether there is such an account.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn user_exists(&self, name: &str) -> Result<bool, StoreError> {
        let name = name.to_owned();
        self.shared.store.read(move |metadata, _| Ok(metadata.user_by_name(&name)?.is_some())).await
    }

    /// Makes a join link for one more device of a user, who is made if needed.
    ///
    /// # Errors
    /// When the name is not legal, or the store fails.
    pub async fn invite(&self, name: &str) -> Result<JoinLink, StoreError> {
        let name = name.to_owned();
        let expires_secs = self.shared.config.accounts.link_expires_secs;
        let invitation = self
            .shared
            .store
            .write(move |metadata| {
                let user = match metadata.user_by_name(&name)? {
                    Some(user) => user.num,
                    None => admin::add_user(metadata, &name, None)?.num,
                };
                admin::add_invitation(metadata, Some(user), expires_secs)
            })
            .await?;
        Ok(JoinLink {
            address: self.shared.public.clone(),
            fingerprint: self.shared.fingerprint,
            secret: invitation.secret,
        })
    }

    /// Returns an error when a part of the server does not work any more.
    ///
    /// # Errors
    /// When the writer does not answer, or the listener is gone.
    pub async fn check(&self) -> Result<(), ServerError> {
        if self.listening.is_finished() {
            return Err(ServerError::Failed("the listener ended"));
        }
        let answer = self.shared.store.write(|_: &mut dyn Metadata| Ok(()));
        match answer.await {
            Err(StoreError::Closed) => Err(ServerError::Failed("the writer ended")),
            // Busy or full is not dead.
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Stops: nobody is let in any more, connections are told, what was handed to the writer is made
    /// durable.
    pub async fn stop(self) {
        self.stop.send_replace(true);
        if let Some((_, web)) = &self.web {
            web.abort();
        }
        if self.listening.await.is_err() {
            tracing::error!("the listener did not end as it should");
        }
        self.shared.store.close().await;
        tracing::info!("stopped");
    }
}

/// Accepts connections until it is told to stop, and then until they have ended.
async fn listen_until(
    shared: Arc<Shared>,
    listener: TcpListener,
    acceptor: TlsAcceptor,
    mut stopping: watch::Receiver<bool>,
) {
    let mut connections = JoinSet::new();
    let watching = tokio::spawn(watch_for_notices(Arc::clone(&shared)));
    let resting = tokio::spawn(rest(Arc::clone(&shared)));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stopping.wait_for(|stop| *stop) => break,
        };
        while connections.try_join_next().is_some() {}
        match accepted {
            Ok((tcp, peer)) => match shared.hub.enter(peer.ip()) {
                Some(seat) => {
                    shared.metrics.accepted.add(1);
                    let (shared, acceptor) = (Arc::clone(&shared), acceptor.clone());
                    connections.spawn(converse(shared, tcp, peer, acceptor, seat));
                }
                None => {
                    shared.metrics.over_limit.add(1);
                    tracing::warn!(%peer, "connection refused: there are too many");
                }
            },
            Err(error) => {
                tracing::warn!(%error, "no connection could be accepted");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    watching.abort();
    resting.abort();
    shared.hub.close();
    let ended = async { while connections.join_next().await.is_some() {} };
    if timeout(STOP_PATIENCE, ended).await.is_err() {
        tracing::warn!("some connections did not end in time");
        connections.shutdown().await;
    }
}

async fn converse(
    shared: Arc<Shared>,
    tcp: TcpStream,
    peer: SocketAddr,
    acceptor: TlsAcceptor,
    seat: hub::Seat,
) {
    let mut end = seat.end.clone();
    let accepted = tokio::select! {
        accepted = ServerConnection::accept(tcp, &acceptor, PROGRAM) => accepted,
        _ = end.wait_for(Option::is_some) => return,
    };
    if accepted.is_err() {
        shared.metrics.failed_handshakes.add(1);
    }
    match accepted {
        Ok(connection) => Box::pin(session::serve(shared, connection, peer, seat)).await,
        Err(error @ (AcceptError::Hello(_) | AcceptError::Version { .. })) => {
            tracing::warn!(%peer, %error, "not accepted");
        }
        Err(error) => tracing::info!(%peer, %error, "not accepted"),
    }
}

/// Gives back the memory that made work fast, when there is none.
async fn rest(shared: Arc<Shared>) {
    let mut ticks = interval(REST_PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if shared.store.packs().rest() {
            heap::give_back();
        }
    }
}

/// Ends the connections of devices that another process revoked, and passes on what it decided about
/// held deletions and quotas.
async fn watch_for_notices(shared: Arc<Shared>) {
    let mut known = None;
    let mut ticks = interval(NOTICE_PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let devices = shared.hub.devices();
        let looked = shared
            .store
            .read(move |metadata, _| {
                let notice = metadata.notice()?;
                let revoked = match known {
                    Some(known) if known == notice => Vec::new(),
                    _ => metadata.revoked(&devices)?,
                };
                Ok((notice, revoked))
            })
            .await;
        match looked {
            Ok((notice, revoked)) => {
                for device in revoked {
                    shared.hub.end_device(device);
                }
                if known != Some(notice) {
                    shared.hub.publish_all_held();
                    let default = shared.config.accounts.quota();
                    let told = publish_usages(&shared.hub, &shared.store, default).await;
                    if let Err(error) = told.as_ref()
                        && error.is_fault()
                    {
                        tracing::error!(%error, "quotas that another process set could not be read");
                    }
                    if told.is_err() {
                        // At the next tick.
                        continue;
                    }
                }
                known = Some(notice);
            }
            Err(error) if error.is_fault() => {
                tracing::error!(%error, "it could not be looked for what other processes changed");
            }
            Err(_) => {}
        }
    }
}
