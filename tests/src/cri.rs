//! The Kubernetes container runtime interface as the kubelet speaks it, over a Unix socket.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};
use towline_proto::cri::v1::image_service_client::ImageServiceClient;
use towline_proto::cri::v1::runtime_service_client::RuntimeServiceClient;
use towline_proto::cri::v1::{
    ContainerConfig, ContainerFilter, ContainerState, ContainerStatus, ContainerStatusRequest,
    CreateContainerRequest, Image, ImageSpec, ImageStatusRequest, ListContainersRequest,
    ListPodSandboxRequest, PodSandboxConfig, PullImageRequest, RemoveContainerRequest, RemoveImageRequest,
    RemovePodSandboxRequest, RunPodSandboxRequest, StartContainerRequest, StatusRequest,
    StopContainerRequest, StopPodSandboxRequest,
};

/// How long any call but a pull may take: the kubelet's `runtimeRequestTimeout`.
const CALL_LIMIT: Duration = Duration::from_secs(120);

/// A client of the runtime service and of the image service, which may be on two sockets. Clones share connections.
///
/// Errors of its methods are the service's, with the call and its object named.
#[derive(Clone, Debug)]
pub struct Cri {
    runtime: RuntimeServiceClient<Channel>,
    images: ImageServiceClient<Channel>,
}

impl Cri {
    /// A client of both services on `socket`. Connects when first used.
    ///
    /// # Errors
    /// Never in practice: the address is fixed.
    pub fn new(socket: &Path) -> Result<Self> {
        Self::with_image_service(socket, socket)
    }

    /// A client of the runtime service on one socket and the image service on another, as a kubelet with
    /// `imageServiceEndpoint`.
    ///
    /// # Errors
    /// Never in practice: the address is fixed.
    pub fn with_image_service(runtime: &Path, images: &Path) -> Result<Self> {
        Ok(Self {
            runtime: RuntimeServiceClient::new(channel(runtime)?),
            images: ImageServiceClient::new(channel(images)?),
        })
    }

    /// Whether the runtime says it is ready. A runtime without a CNI configuration is: host network needs none.
    ///
    /// # Errors
    /// See [`Cri`].
    pub async fn is_ready(&self) -> Result<bool> {
        let answer =
            self.runtime.clone().status(limited(StatusRequest::default())).await.context("CRI Status")?;
        let conditions = answer.into_inner().status.unwrap_or_default().conditions;
        Ok(conditions.iter().any(|condition| condition.r#type == "RuntimeReady" && condition.status))
    }

    /// Pulls an image and returns the reference that names it from then on. Has no time limit, as the kubelet's.
    ///
    /// # Errors
    /// See [`Cri`].
    pub async fn pull(&self, reference: &str) -> Result<String> {
        let request = PullImageRequest { image: Some(image(reference)), ..Default::default() };
        let answer =
            self.images.clone().pull_image(request).await.with_context(|| format!("pull {reference}"))?;
        Ok(answer.into_inner().image_ref)
    }

    /// What the runtime knows of an image, if it has it.
    ///
    /// # Errors
    /// See [`Cri`].
    pub async fn image(&self, reference: &str) -> Result<Option<Image>> {
        let request = ImageStatusRequest { image: Some(image(reference)), verbose: false };
        let answer = self.images.clone().image_status(limited(request)).await;
        Ok(answer.with_context(|| format!("look up {reference}"))?.into_inner().image)
    }

    /// Removes an image; one that is not there is fine.
    ///
    /// # Errors
    /// See [`Cri`].
    pub async fn remove_image(&self, reference: &str) -> Result<()> {
        let request = RemoveImageRequest { image: Some(image(reference)) };
        self.images
            .clone()
            .remove_image(limited(request))
            .await
            .with_context(|| format!("remove {reference}"))?;
        Ok(())
    }

    /// Runs a pod sandbox and returns its id.
    ///
    /// # Errors
    /// See [`Cri`].
    pub async fn run_sandbox(&self, config: PodSandboxConfig) -> Result<String> {
        let request = RunPodSandboxRequest { config: Some(config), ..Default::default() };
        let answer =
            self.runtime.clone().run_pod_sandbox(limited(request)).await.context("run a pod sandbox")?;
        Ok(answer.into_inner().pod_sandbox_id)
    }

    /// The ids of all sandboxes.
    ///
    /// # Errors
    /// See [`Cri`].
    pub async fn sandboxes(&self) -> Result<Vec<String>> {
        let answer = self.runtime.clone().list_pod_sandbox(limited(ListPodSandboxRequest::default())).await;
        let items = answer.context("list pod sandboxes")?.into_inner().items;
        Ok(items.into_iter().map(|sandbox| sandbox.id).collect())
    }

    /// Stops and removes a sandbox with its containers.
    ///
    /// # Errors
    /// See [`Cri`].
    pub async fn remove_sandbox(&self, id: &str) -> Result<()> {
        let mut runtime = self.runtime.clone();
        let request = StopPodSandboxRequest { pod_sandbox_id: id.to_owned() };
        runtime.stop_pod_sandbox(limited(request)).await.with_context(|| format!("stop sandbox {id}"))?;
        let request = RemovePodSandboxRequest { pod_sandbox_id: id.to_owned() };
        runtime.remove_pod_sandbox(limited(request)).await.with_context(|| format!("remove sandbox {id}"))?;
        Ok(())
    }

    /// Creates a container in a sandbox and returns its id. Here the runtime mounts image volumes.
    ///
    /// # Errors
    /// See [`Cri`].
    pub async fn create(
        &self,
        sandbox: &str,
        config: ContainerConfig,
        pod: PodSandboxConfig,
    ) -> Result<String> {
        let request = CreateContainerRequest {
            pod_sandbox_id: sandbox.to_owned(),
            config: Some(config),
            sandbox_config: Some(pod),
        };
        let answer =
            self.runtime.clone().create_container(limited(request)).await.context("create a container")?;
        Ok(answer.into_inner().container_id)
    }

    /// Starts a container; when this returns its program runs.
    ///
    /// # Errors
    /// See [`Cri`].
    pub async fn start(&self, container: &str) -> Result<()> {
        let request = StartContainerRequest { container_id: container.to_owned() };
        let mut runtime = self.runtime.clone();
        runtime
            .start_container(limited(request))
            .await
            .with_context(|| format!("start container {container}"))?;
        Ok(())
    }

    /// A container's state.
    ///
    /// # Errors
    /// See [`Cri`].
    pub async fn container(&self, id: &str) -> Result<ContainerStatus> {
        let request = ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
        let answer = self.runtime.clone().container_status(limited(request)).await;
        answer
            .with_context(|| format!("look up container {id}"))?
            .into_inner()
            .status
            .context("an answer without status")
    }

    /// The exit code of the container of the pod with this name, once it has ended. Pods are found by the label that
    /// the kubelet and [`crate::pod`] give them.
    ///
    /// # Errors
    /// See [`Cri`].
    pub async fn exit_code_in_pod(&self, name: &str) -> Result<Option<i32>> {
        let label = ("io.kubernetes.pod.name".to_owned(), name.to_owned());
        let filter = ContainerFilter { label_selector: HashMap::from([label]), ..Default::default() };
        let request = ListContainersRequest { filter: Some(filter) };
        let answer =
            self.runtime.clone().list_containers(limited(request)).await.context("list containers")?;
        let Some(container) = answer.into_inner().containers.pop() else { return Ok(None) };
        let status = self.container(&container.id).await?;
        Ok((status.state() == ContainerState::ContainerExited).then_some(status.exit_code))
    }

    /// Stops a container, giving it `grace` to end by itself, and removes it.
    ///
    /// # Errors
    /// See [`Cri`].
    pub async fn remove_container(&self, id: &str, grace: Duration) -> Result<()> {
        let mut runtime = self.runtime.clone();
        let timeout = i64::try_from(grace.as_secs()).unwrap_or(i64::MAX);
        let request = StopContainerRequest { container_id: id.to_owned(), timeout };
        runtime.stop_container(limited(request)).await.with_context(|| format!("stop container {id}"))?;
        let request = RemoveContainerRequest { container_id: id.to_owned() };
        runtime.remove_container(limited(request)).await.with_context(|| format!("remove container {id}"))?;
        Ok(())
    }
}

/// An image by reference.
#[must_use]
pub fn image(reference: &str) -> ImageSpec {
    ImageSpec {
        image: reference.to_owned(),
        user_specified_image: reference.to_owned(),
        ..Default::default()
    }
}

fn limited<T>(message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.set_timeout(CALL_LIMIT);
    request
}

/// A connection to a Unix socket. The authority is `localhost`, as Go's client has it.
fn channel(socket: &Path) -> Result<Channel> {
    let socket: PathBuf = socket.to_path_buf();
    let connector = tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    Ok(Endpoint::try_from("http://localhost")?.connect_with_connector_lazy(connector))
}
