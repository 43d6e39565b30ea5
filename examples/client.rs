//! Joins as a new device, puts a file, lists the drive, and gets the file back.
//!
//! `cargo run --example client -- 'picloud://HOST:46000/#…' notes.txt`

use std::path::Path;

use picloud::client::{Client, Step};
use picloud::model::{JoinLink, RelPath};
use picloud::protocol::{Endpoint, Trust};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let (Some(link), Some(file)) = (arguments.next(), arguments.next()) else {
        anyhow::bail!("Usage: client LINK FILE");
    };
    let link = JoinLink::parse(&link)?;
    let endpoint =
        Endpoint { address: link.address.clone(), trust: Trust::Pinned(link.fingerprint) };

    let mut client = Client::connect(&endpoint).await?;
    let session = match client.join(&link.secret, "example").await? {
        Step::Admitted(session) => session,
        Step::Question(question) => anyhow::bail!("The server asks: {}", question.text),
    };
    println!("Joined as a device of {}", session.admitted().user_name);
    // A program that means to come back keeps `session.credentials()` and calls `Client::resume`.

    let file = Path::new(&file);
    let remote = RelPath::parse(b"example/file")?;
    let stored = session.put_file(file, &remote).await?;
    println!("{remote} is at rev {}", stored.rev);

    let mut listing = session.list(&RelPath::ROOT).await?;
    while let Some(entry) = listing.next().await? {
        println!("{:>12} {}", entry.node.body.content_len(), entry.path);
    }

    let copy = file.with_extension("copy");
    session.get_file(&remote, &copy).await?;
    println!("Got it back as {}", copy.display());

    session.logout().await?;
    Ok(())
}
