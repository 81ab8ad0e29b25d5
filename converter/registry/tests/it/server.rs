//! A scripted HTTP server: every answer is raw bytes, so it can be as wrong as a test needs.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use towline_registry::{
    Client, ClientOptions, Credential, MemoryCredentials, Repository, RetryPolicy, Secret,
};

/// A request as it came.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) target: String,
    pub(crate) headers: HashMap<String, String>,
    pub(crate) body: Vec<u8>,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }
}

/// What goes back, and whether the connection then stays open in silence.
pub(crate) struct Reply {
    bytes: Vec<u8>,
    hang: bool,
}

impl Reply {
    /// A well-formed answer; a `content-length` among the headers replaces the right one.
    pub(crate) fn new(status: u16, headers: &[(&str, &str)], body: &[u8]) -> Self {
        let mut head = format!("HTTP/1.1 {status} X\r\nconnection: close\r\n");
        let framed = |name: &str| name == "content-length" || name == "transfer-encoding";
        if !headers.iter().any(|(name, _)| framed(name)) {
            head += &format!("content-length: {}\r\n", body.len());
        }
        headers.iter().for_each(|(name, value)| head += &format!("{name}: {value}\r\n"));
        let bytes = [head.as_bytes(), b"\r\n", body].concat();
        Self { bytes, hang: false }
    }

    /// The same in chunked encoding, which promises no length.
    pub(crate) fn chunked(status: u16, headers: &[(&str, &str)], body: &[u8]) -> Self {
        let body = [format!("{:x}\r\n", body.len()).as_bytes(), body, b"\r\n0\r\n\r\n"].concat();
        Self::new(status, &[&[("transfer-encoding", "chunked")], headers].concat(), &body)
    }

    /// Nothing at all: the connection is closed.
    pub(crate) fn drop() -> Self {
        Self { bytes: Vec::new(), hang: false }
    }

    /// Keeps the connection open afterwards.
    pub(crate) fn then_hang(mut self) -> Self {
        self.hang = true;
        self
    }
}

/// Runs until the test ends.
#[derive(Clone)]
pub(crate) struct Server {
    pub(crate) addr: SocketAddr,
    log: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    pub(crate) fn start(handler: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = Self { addr: listener.local_addr().unwrap(), log: Arc::default() };
        let (log, handler) = (server.log.clone(), Arc::new(handler));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (log, handler) = (log.clone(), handler.clone());
                std::thread::spawn(move || serve(stream, &log, &*handler));
            }
        });
        server
    }

    pub(crate) fn host(&self) -> String {
        self.addr.to_string()
    }

    pub(crate) fn repository(&self) -> Repository {
        Repository::new(&self.host(), "a/b").unwrap()
    }

    /// All requests so far.
    pub(crate) fn requests(&self) -> Vec<Request> {
        self.log.lock().unwrap().clone()
    }

    /// Requests whose target contains `part`.
    pub(crate) fn count(&self, part: &str) -> usize {
        self.requests().iter().filter(|request| request.target.contains(part)).count()
    }
}

fn serve(mut stream: TcpStream, log: &Mutex<Vec<Request>>, handler: &dyn Fn(&Request) -> Reply) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let Some(request) = read_request(&mut reader) else { return };
    log.lock().unwrap().push(request.clone());
    let reply = handler(&request);
    let _ = stream.write_all(&reply.bytes);
    if reply.hang {
        // Until the client goes away.
        let _ = reader.read_to_end(&mut Vec::new());
    } else {
        // What was not read would turn the close into a reset that destroys our answer: read it, but not for long.
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let _ = stream.set_read_timeout(Some(Duration::from_secs(5)));
        let _ = reader.read_to_end(&mut Vec::new());
    }
}

fn read_request(reader: &mut BufReader<TcpStream>) -> Option<Request> {
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let mut words = line.split(' ');
    let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = HashMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(": ") else { break };
        headers.insert(name.to_ascii_lowercase(), value.to_owned());
    }
    let len = headers.get("content-length").and_then(|len| len.parse().ok()).unwrap_or(0);
    // Large bodies are left unread: only tests of early refusals send them here.
    let mut body = vec![0; if len > 1 << 20 { 0 } else { len }];
    reader.read_exact(&mut body).ok()?;
    Some(Request { method, target, headers, body })
}

/// Options for tests: quick repetitions, short limits.
pub(crate) fn options() -> ClientOptions {
    let retry = RetryPolicy { attempts: 3, base: Duration::from_millis(1), ..RetryPolicy::default() };
    ClientOptions { retry, ..ClientOptions::default() }
}

/// A client that stands still for no longer than a moment.
pub(crate) fn impatient() -> Client {
    let retry = RetryPolicy { attempts: 1, ..RetryPolicy::default() };
    Client::new(ClientOptions { retry, idle_timeout: Duration::from_millis(200), ..options() }).unwrap()
}

pub(crate) fn client() -> Client {
    Client::new(options()).unwrap()
}

/// A client that has one credential for everything on `host`.
pub(crate) fn client_with(host: &str, credential: Credential) -> Client {
    let credentials = MemoryCredentials::new();
    credentials.set(host, "", credential);
    Client::new(ClientOptions { credentials: Arc::new(credentials), ..options() }).unwrap()
}

pub(crate) fn user() -> Credential {
    Credential::Basic { username: "me".into(), password: Secret::new("hunter2") }
}

/// `me:hunter2`
pub(crate) const USER_HEADER: &str = "Basic bWU6aHVudGVyMg==";
