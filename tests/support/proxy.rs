//! A TCP proxy that can slow a connection down, freeze it, cut it, and refuse new ones.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

pub struct Proxy {
    port: u16,
    state: Arc<State>,
}

struct State {
    target: String,
    open: AtomicBool,
    stopped: AtomicBool,
    frozen: AtomicBool,
    /// Bytes per second and direction; 0 for no limit.
    rate: AtomicU64,
    /// Bytes that went through, both ways.
    carried: AtomicU64,
    streams: Mutex<Vec<TcpStream>>,
}

impl Proxy {
    pub fn to(target: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(State {
            target: target.to_owned(),
            open: AtomicBool::new(true),
            stopped: AtomicBool::new(false),
            frozen: AtomicBool::new(false),
            rate: AtomicU64::new(0),
            carried: AtomicU64::new(0),
            streams: Mutex::new(Vec::new()),
        });
        let accepting = Arc::clone(&state);
        std::thread::spawn(move || accept(&listener, &accepting));
        Self { port, state }
    }

    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Cuts every connection, and refuses new ones until [`Proxy::mend`].
    pub fn cut(&self) {
        self.state.open.store(false, Ordering::SeqCst);
        self.cut_once();
    }

    /// Cuts every connection.
    pub fn cut_once(&self) {
        for stream in self.state.streams.lock().unwrap().drain(..) {
            stream.shutdown(Shutdown::Both).ok();
        }
    }

    pub fn mend(&self) {
        self.state.open.store(true, Ordering::SeqCst);
    }

    /// Takes everything and passes nothing on, without closing anything: as a network that is gone.
    /// After [`Proxy::thaw`] what was held back goes on its way, however late.
    pub fn freeze(&self) {
        self.state.frozen.store(true, Ordering::SeqCst);
    }

    pub fn thaw(&self) {
        self.state.frozen.store(false, Ordering::SeqCst);
    }

    /// Bytes per second in each direction of each connection; 0 for no limit.
    pub fn set_rate(&self, rate: u64) {
        self.state.rate.store(rate, Ordering::SeqCst);
    }

    /// Bytes that went through so far, both ways.
    pub fn carried(&self) -> u64 {
        self.state.carried.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.state.stopped.store(true, Ordering::SeqCst);
        self.cut();
        // Wakes the accepting thread.
        TcpStream::connect(("127.0.0.1", self.port)).ok();
    }
}

fn accept(listener: &TcpListener, state: &Arc<State>) {
    for client in listener.incoming() {
        if state.stopped.load(Ordering::SeqCst) {
            return;
        }
        let Ok(client) = client else { continue };
        if !state.open.load(Ordering::SeqCst) {
            continue;
        }
        let Ok(server) = TcpStream::connect(&state.target) else {
            continue;
        };
        client.set_nodelay(true).ok();
        server.set_nodelay(true).ok();
        {
            let mut streams = state.streams.lock().unwrap();
            streams.push(client.try_clone().unwrap());
            streams.push(server.try_clone().unwrap());
        }
        for (from, to) in
            [(client.try_clone().unwrap(), server.try_clone().unwrap()), (server, client)]
        {
            let state = Arc::clone(state);
            std::thread::spawn(move || pump(from, to, &state));
        }
    }
}

fn pump(mut from: TcpStream, mut to: TcpStream, state: &State) {
    let mut buffer = [0; 16 * 1024];
    loop {
        let read = match from.read(&mut buffer) {
            Ok(0) | Err(_) => break,
            Ok(read) => read,
        };
        let rate = state.rate.load(Ordering::SeqCst);
        if rate > 0 {
            std::thread::sleep(Duration::from_secs_f64(read as f64 / rate as f64));
        }
        while state.frozen.load(Ordering::SeqCst) && !state.stopped.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(10));
        }
        state.carried.fetch_add(read as u64, Ordering::SeqCst);
        if to.write_all(&buffer[..read]).is_err() {
            break;
        }
    }
    from.shutdown(Shutdown::Both).ok();
    to.shutdown(Shutdown::Both).ok();
}
