//! The tour: documents fetched over HTTP through a function cache.
//!
//! A server on loopback serves small documents with a delay and counts what it is asked for. A client
//! fetches them through `#[alru_cache]`. Each step says what it shows and checks it; the exit code is 1 if
//! anything is not so.
//!
//! ```sh
//! cargo run --release --example quickstart             # about 13 s, most of it waiting for a TTL to pass
//! cargo run --release --example quickstart -- --fast   # the same with a TTL of 1.5 s
//! ```

use alru::{LoadError, alru_cache};
use axum::{Router, extract, http::StatusCode, routing::get};
use std::collections::HashMap;
use std::process::ExitCode;
use std::sync::{Arc, LazyLock, Mutex, OnceLock};
use std::time::{Duration, Instant};
use tokio::{net::TcpListener, task::JoinSet};

#[derive(Clone, Debug, PartialEq)]
struct Pep {
    num: u32,
    text: Arc<str>,
}

#[derive(Debug, PartialEq)]
enum FetchError {
    Missing(u32),
    Http(String),
}

/// At most 32 documents, each for 10 to 12 s from the end of its load.
#[alru_cache(maxsize = 32, ttl = "10s", jitter = "2s")]
async fn get_pep(num: u32) -> Result<Pep, FetchError> {
    fetch(num).await
}

/// The same for `--fast`.
#[alru_cache(maxsize = 32, ttl = "1500ms", jitter = "500ms")]
async fn get_pep_fast(num: u32) -> Result<Pep, FetchError> {
    fetch(num).await
}

async fn fetch(num: u32) -> Result<Pep, FetchError> {
    static CLIENT: LazyLock<reqwest::Client> = LazyLock::new(reqwest::Client::new);
    let failed = |error: reqwest::Error| FetchError::Http(error.to_string());

    let url = format!("{}/pep/{num}", SERVER.get().expect("the server runs").url);
    let response = CLIENT.get(url).send().await.map_err(failed)?;
    match response.status() {
        reqwest::StatusCode::OK => {
            let text = response.text().await.map_err(failed)?.into();
            Ok(Pep { num, text })
        }
        reqwest::StatusCode::NOT_FOUND => Err(FetchError::Missing(num)),
        status => Err(FetchError::Http(status.to_string())),
    }
}

/// What a client sees of the server, and how often it was asked for each document.
struct Server {
    url: String,
    requests: Mutex<HashMap<u32, u32>>,
}

static SERVER: OnceLock<Server> = OnceLock::new();

impl Server {
    const DELAY: Duration = Duration::from_millis(50);
    const LAST: u32 = 100;

    async fn start() -> std::io::Result<&'static Server> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}", listener.local_addr()?);
        let server = SERVER.get_or_init(|| Server { url, requests: Mutex::default() });
        let pages = Router::new().route("/pep/{num}", get(Self::page));
        tokio::spawn(async { axum::serve(listener, pages).await });
        Ok(server)
    }

    async fn page(extract::Path(num): extract::Path<u32>) -> (StatusCode, String) {
        let server = SERVER.get().expect("set before the first request");
        *server.requests.lock().unwrap().entry(num).or_default() += 1;
        tokio::time::sleep(Self::DELAY).await;
        match num {
            0..=Self::LAST => (StatusCode::OK, format!("PEP {num}: an enhancement proposal")),
            _ => (StatusCode::NOT_FOUND, String::new()),
        }
    }

    fn requests_for(&self, num: u32) -> u32 {
        self.requests.lock().unwrap().get(&num).copied().unwrap_or(0)
    }

    fn requests(&self) -> u32 {
        self.requests.lock().unwrap().values().sum()
    }
}

/// Prints what is checked, and remembers whether all of it held.
struct Tour {
    holds: bool,
}

impl Tour {
    fn step(&self, title: &str) {
        println!("\n{title}");
    }

    fn check(&mut self, claim: &str, holds: bool) {
        println!("  {} {claim}", if holds { "ok  " } else { "FAIL" });
        self.holds &= holds;
    }
}

/// The tour through one of the two functions; `$life` is its TTL and jitter together.
macro_rules! tour {
    ($get_pep:ident, $life:expr) => {{
        let server = Server::start().await?;
        let mut tour = Tour { holds: true };

        tour.step("Five documents for the first time: five misses.");
        for num in 1..=5 {
            let pep = $get_pep(num).await;
            tour.check(&format!("document {num} came"), pep.is_ok_and(|pep| pep.num == num));
        }
        tour.check("the server was asked five times", server.requests() == 5);

        tour.step("The same five again: hits, and the server hears nothing.");
        let begin = Instant::now();
        for num in 1..=5 {
            tour.check(&format!("document {num} is there"), $get_pep(num).await.is_ok());
        }
        println!("       in {:?} together", begin.elapsed());
        tour.check("the server was not asked", server.requests() == 5);

        tour.step("A hundred callers at once for document 8, which is cold: one request.");
        let mut callers = JoinSet::new();
        for _ in 0..100 {
            callers.spawn($get_pep(8));
        }
        let peps = callers.join_all().await;
        let same = peps.iter().all(|pep| matches!(pep, Ok(pep) if pep.num == 8));
        tour.check("all hundred have it", same && peps.len() == 100);
        tour.check("the server was asked exactly once", server.requests_for(8) == 1);

        tour.step("A document that does not exist: an error, which is not cached.");
        for _ in 0..2 {
            let missing = $get_pep(404).await;
            let missing = missing.as_ref().map_err(LoadError::failed);
            tour.check("it is missing", missing == Err(Some(&FetchError::Missing(404))));
        }
        tour.check("the server was asked both times", server.requests_for(404) == 2);

        tour.step("What the cache knows of itself.");
        tour.check("it has document 8", $get_pep::cache_contains(&8));
        tour.check("it has no document 9", !$get_pep::cache_contains(&9));
        let info = $get_pep::cache_info().to_string();
        println!("       {info}");
        let expected = "CacheInfo(hits=104, misses=8, maxsize=32, currsize=6)";
        tour.check("104 hits, 8 misses, 6 entries", info == expected);
        tour.check("one entry can be dropped", $get_pep::cache_invalidate(&1));
        tour.check("and is gone", !$get_pep::cache_contains(&1));

        let wait = $life + Duration::from_millis(50);
        tour.step(&format!("Past the TTL and all jitter, {wait:?} later: fetched anew."));
        tokio::time::sleep(wait).await;
        tour.check("document 8 has expired", !$get_pep::cache_contains(&8));
        tour.check("and comes again", $get_pep(8).await.is_ok());
        tour.check("by a second request", server.requests_for(8) == 2);

        tour.step("Closed: nothing is served any more.");
        $get_pep::cache_close(true).await;
        tour.check("a call says so", matches!($get_pep(8).await, Err(LoadError::Closed)));
        let parameters = $get_pep::cache_parameters();
        tour.check("no load is left", parameters.closed && parameters.tasks == 0);
        tour.holds
    }};
}

#[tokio::main]
async fn main() -> std::io::Result<ExitCode> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let holds = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => tour!(get_pep, Duration::from_secs(12)),
        ["--fast"] => tour!(get_pep_fast, Duration::from_secs(2)),
        ["--help" | "-h"] => {
            println!("usage: quickstart [--fast]\n\n  --fast  a TTL of 1.5 s instead of 10 s");
            return Ok(ExitCode::SUCCESS);
        }
        _ => {
            eprintln!("quickstart: what is {arguments:?}? Try --help.");
            return Ok(ExitCode::from(2));
        }
    };
    println!("\n{}", if holds { "All of it holds." } else { "Something does not hold: see FAIL." });
    Ok(if holds { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
