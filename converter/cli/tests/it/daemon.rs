//! A daemon that says what the test wants, on a control socket of its own.

use std::sync::{Arc, Mutex};

use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status};
use towline_proto::control::v1::control_server::{Control, ControlServer};
use towline_proto::control::v1::{
    Model, MountRequest, MountResponse, Peer, PeersRequest, PeersResponse, PrefetchProgress, PrefetchRequest,
    ReleaseRequest, ReleaseResponse, State, StatusRequest, StatusResponse, Store, UnmountRequest,
    UnmountResponse,
};

use crate::run::Place;

/// What the calls of a test are answered with.
#[derive(Clone, Default)]
pub(crate) struct Daemon {
    /// How far the model is, in each answer to a prefetch; `None` breaks the stream off.
    pub(crate) progress: Vec<Option<Model>>,
    /// After these answers nothing comes, and the stream stays open.
    pub(crate) stalls: bool,
    /// What everything but status and peers is refused with.
    pub(crate) refusal: Option<Status>,
    /// What was asked, in order.
    pub(crate) asked: Arc<Mutex<Vec<String>>>,
}

impl Daemon {
    /// Serves it below `place` and gives the path of the socket.
    pub(crate) fn serve(&self, place: &Place) -> String {
        let socket = place.path("control.sock");
        let incoming = UnixListenerStream::new(UnixListener::bind(&socket).unwrap());
        let server = tonic::transport::Server::builder().add_service(ControlServer::new(self.clone()));
        tokio::spawn(server.serve_with_incoming(incoming));
        socket.to_str().unwrap().to_owned()
    }

    pub(crate) fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }

    fn heard(&self, what: String) -> Result<(), Status> {
        self.asked.lock().unwrap().push(what);
        self.refusal.clone().map_or(Ok(()), Err)
    }
}

pub(crate) fn model(state: State, local: u64) -> Model {
    Model {
        reference: "registry.example.com/models/tiny:v1".into(),
        bytes: 1 << 30,
        bytes_local: local,
        bytes_from_origin: 1 << 20,
        bytes_from_peers: 1 << 21,
        state: state as i32,
        ..Model::default()
    }
}

#[tonic::async_trait]
impl Control for Daemon {
    type PrefetchStream = tokio_stream::wrappers::ReceiverStream<Result<PrefetchProgress, Status>>;

    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        let model = Model {
            last_error: "registry.example.com is unreachable".into(),
            kept: true,
            mounts: vec!["/mnt/tiny".into()],
            ..model(State::Waiting, 1 << 29)
        };
        Ok(Response::new(StatusResponse {
            version: "9.9.9".into(),
            passthrough: "yes".into(),
            models: vec![model],
            store: Some(Store { contents: 3, contents_sealed: 2, bytes: 1 << 29 }),
            ..StatusResponse::default()
        }))
    }

    async fn prefetch(
        &self,
        request: Request<PrefetchRequest>,
    ) -> Result<Response<Self::PrefetchStream>, Status> {
        let request = request.into_inner();
        self.heard(format!("prefetch {} {}", request.reference, request.wait))?;
        let (sender, answers) = tokio::sync::mpsc::channel(1);
        let (progress, stalls) = (self.progress.clone(), self.stalls);
        tokio::spawn(async move {
            for model in progress {
                let answer = model.map(|model| PrefetchProgress { model: Some(model) });
                let answer = answer.ok_or_else(|| Status::unavailable("the daemon is stopping"));
                sender.send(answer).await.expect("the command listens");
            }
            if stalls {
                sender.closed().await;
            }
        });
        Ok(Response::new(answers.into()))
    }

    async fn release(&self, request: Request<ReleaseRequest>) -> Result<Response<ReleaseResponse>, Status> {
        self.heard(format!("release {}", request.into_inner().reference))?;
        Ok(Response::new(ReleaseResponse {}))
    }

    async fn mount(&self, request: Request<MountRequest>) -> Result<Response<MountResponse>, Status> {
        let MountRequest { reference, directory } = request.into_inner();
        self.heard(format!("mount {reference} {directory}"))?;
        let model = Model { mounts: vec![directory], ..model(State::Idle, 0) };
        Ok(Response::new(MountResponse { model: Some(model) }))
    }

    async fn unmount(&self, request: Request<UnmountRequest>) -> Result<Response<UnmountResponse>, Status> {
        self.heard(format!("unmount {}", request.into_inner().directory))?;
        Ok(Response::new(UnmountResponse {}))
    }

    async fn peers(&self, _: Request<PeersRequest>) -> Result<Response<PeersResponse>, Status> {
        let peer =
            |name: &str| Peer { name: name.into(), address: "10.0.0.7:7118".into(), ..Peer::default() };
        let near = Peer { bytes_from: 4 << 20, ..peer("near") };
        Ok(Response::new(PeersResponse { enabled: true, self_: Some(peer("here")), peers: vec![near] }))
    }
}
