//! A stand-in for a Kubernetes API server: TLS on loopback with a CA made for the test, and answers a test writes.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, Once};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;
use towline_peer::InCluster;

/// A certificate authority.
pub(crate) struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub(crate) fn new() -> Self {
        static PROVIDER: Once = Once::new();
        PROVIDER.call_once(|| {
            rustls::crypto::ring::default_provider().install_default().expect("the first provider");
        });
        let mut params = CertificateParams::new([]).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("key");
        let pem = params.self_signed(&key).expect("certificate").pem();
        Self { pem, issuer: Issuer::new(params, key) }
    }

    fn acceptor(&self, name: &str) -> TlsAcceptor {
        let key = KeyPair::generate().expect("key");
        let params = CertificateParams::new([name.to_owned()]).expect("a name");
        let certificate = params.signed_by(&key, &self.issuer).expect("certificate");
        let key = PrivateKeyDer::try_from(key.serialize_der()).expect("a key just made");
        let config = ServerConfig::builder().with_no_client_auth();
        let config = config.with_single_cert(vec![certificate.der().clone()], key).expect("a pair");
        TlsAcceptor::from(Arc::new(config))
    }

    /// Writes the files of a service account.
    pub(crate) fn write_account(&self, dir: &Path, token: &str) {
        std::fs::write(dir.join("ca.crt"), &self.pem).expect("write");
        std::fs::write(dir.join("token"), token).expect("write");
    }
}

/// The head of a request.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    /// Path and query.
    pub(crate) target: String,
    pub(crate) head: String,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let headers = self.head.lines().filter_map(|line| line.split_once(": "));
        headers.filter(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value).next()
    }
}

/// What a test answers.
pub(crate) enum Reply {
    /// A whole answer, head included.
    Bytes(Vec<u8>),
    /// This head, and then a body that does not end.
    Endless(&'static str),
}

impl Reply {
    pub(crate) fn json(body: &str) -> Self {
        Self::status("200 OK", body)
    }

    pub(crate) fn status(status: &str, body: &str) -> Self {
        let len = body.len();
        let head =
            format!("HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {len}\r\n\r\n");
        Self::Bytes((head + body).into_bytes())
    }
}

/// A running server. Ends with the value.
pub(crate) struct Api {
    pub(crate) address: SocketAddr,
    shared: Arc<Shared>,
    _server: JoinSet<()>,
}

#[derive(Default)]
struct Shared {
    connections: Mutex<usize>,
    requests: Mutex<Vec<Request>>,
    /// Bytes of endless bodies that were taken from us.
    sent: Mutex<usize>,
}

impl Api {
    /// Serves `answer` at a port of its own, as `127.0.0.1`.
    pub(crate) async fn start(
        authority: &Authority,
        answer: impl Fn(&Request) -> Reply + Send + Sync + 'static,
    ) -> Self {
        Self::start_as(authority, "127.0.0.1", answer).await
    }

    /// The same with a certificate for `name`.
    pub(crate) async fn start_as(
        authority: &Authority,
        name: &str,
        answer: impl Fn(&Request) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let acceptor = authority.acceptor(name);
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("address");
        let shared = Arc::new(Shared::default());
        let (answer, kept) = (Arc::new(answer), shared.clone());
        let mut server = JoinSet::new();
        server.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                *kept.connections.lock().unwrap() += 1;
                let (acceptor, answer, kept) = (acceptor.clone(), answer.clone(), kept.clone());
                // A client that goes away ends its connection and nothing else.
                connections.spawn(async move { drop(serve(stream, acceptor, &*answer, &kept).await) });
            }
        });
        Self { address, shared, _server: server }
    }

    /// The API with the account in `dir`.
    pub(crate) fn cluster(&self, dir: &Path) -> InCluster {
        let address = self.address;
        let get = |name: &str| match name {
            "KUBERNETES_SERVICE_HOST" => Some(address.ip().to_string()),
            "KUBERNETES_SERVICE_PORT" => Some(address.port().to_string()),
            _ => None,
        };
        InCluster::from_env(get, dir).expect("settings")
    }

    pub(crate) fn requests(&self) -> Vec<Request> {
        self.shared.requests.lock().unwrap().clone()
    }

    pub(crate) fn connections(&self) -> usize {
        *self.shared.connections.lock().unwrap()
    }

    pub(crate) fn sent(&self) -> usize {
        *self.shared.sent.lock().unwrap()
    }
}

async fn serve(
    stream: TcpStream,
    acceptor: TlsAcceptor,
    answer: &(impl Fn(&Request) -> Reply + Send + Sync),
    shared: &Shared,
) -> std::io::Result<()> {
    let mut stream = acceptor.accept(stream).await?;
    loop {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await?);
        }
        let head = String::from_utf8(head).expect("requests are ASCII");
        let target = head.split(' ').nth(1).expect("a request line").to_owned();
        let request = Request { target, head };
        shared.requests.lock().unwrap().push(request.clone());
        match answer(&request) {
            Reply::Bytes(bytes) => stream.write_all(&bytes).await?,
            Reply::Endless(head) => {
                stream.write_all(head.as_bytes()).await?;
                loop {
                    // A chunk of 64 KiB; where the head has a length, bytes like any others.
                    let chunk = [b"10000\r\n", &[b' '; 0x10000][..], b"\r\n"].concat();
                    stream.write_all(&chunk).await?;
                    *shared.sent.lock().unwrap() += chunk.len();
                }
            }
        }
        stream.flush().await?;
    }
}
