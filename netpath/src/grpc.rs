//! gRPC over a socket of this node, for a process that asks once or twice.

use std::future::Future;
use std::io;
use std::path::Path;
use std::time::Duration;

use tonic::client::Grpc;
use tonic::transport::{Channel, Endpoint, Error};
use tonic::{Request, Status};
use tonic_prost::ProstCodec;

/// More than that is not the list of one node's pods.
const ANSWER_LIMIT: usize = 16 << 20;

/// A connection to a server.
pub type Client = Grpc<Channel>;

/// Waits for `asked` on this thread; `None` if it has not ended within this time.
pub fn within<T>(time: Duration, asked: impl Future<Output = T>) -> io::Result<Option<T>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(runtime.block_on(async { tokio::time::timeout(time, asked).await }).ok())
}

/// Connects to the server of a socket.
pub async fn connect(socket: &Path) -> Result<Client, Error> {
    let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display()))?;
    Ok(Grpc::new(endpoint.connect().await?).max_decoding_message_size(ANSWER_LIMIT))
}

/// One question, one answer.
pub async fn unary<Q, A>(client: &mut Client, method: &'static str, request: Q) -> Result<A, Status>
where
    Q: prost::Message + 'static,
    A: prost::Message + Default + 'static,
{
    client.ready().await.map_err(|error| Status::from_error(Box::new(error)))?;
    let method = method.parse().map_err(|_| Status::internal("the method's path is not valid"))?;
    Ok(client.unary(Request::new(request), method, ProstCodec::default()).await?.into_inner())
}
