//! An API server that accepts connections and says nothing.

use tempfile::TempDir;
use tokio::net::TcpListener;

use super::InCluster;

pub(crate) struct Hanging {
    pub(crate) cluster: InCluster,
    /// Never accepts: the kernel completes connections by itself.
    _listener: TcpListener,
    _dir: TempDir,
}

impl Hanging {
    pub(crate) async fn new() -> Self {
        // Fails only when another test was first, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let port = listener.local_addr().expect("address").port();
        let dir = TempDir::new().expect("directory");
        let ca = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).expect("certificate");
        std::fs::write(dir.path().join("ca.crt"), ca.cert.pem()).expect("write");
        std::fs::write(dir.path().join("token"), "token").expect("write");
        let get = |name: &str| match name {
            "KUBERNETES_SERVICE_HOST" => Some("127.0.0.1".to_owned()),
            "KUBERNETES_SERVICE_PORT" => Some(port.to_string()),
            _ => None,
        };
        let cluster = InCluster::from_env(get, dir.path()).expect("settings");
        Self { cluster, _listener: listener, _dir: dir }
    }
}
