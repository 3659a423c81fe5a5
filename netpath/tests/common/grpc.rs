//! A gRPC server on a socket, of HTTP/2 frames and protobuf bytes that are put together here.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::fs;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use bytes::Bytes;
use h2::server::SendResponse;
use http::{HeaderMap, HeaderValue, Response};
use tokio::sync::oneshot;

/// What is answered.
pub(crate) enum Reply {
    /// A message.
    Message(Vec<u8>),
    /// A status and its text.
    Refusal(&'static str, &'static str),
    /// Nothing, ever.
    Nothing,
}

/// Serves until it is dropped.
pub(crate) struct Server {
    calls: Arc<Mutex<Vec<String>>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// `answer` is given the method and the framed question.
    pub(crate) fn new(socket: &Path, answer: impl Fn(&str, &[u8]) -> Reply + Send + Sync + 'static) -> Self {
        if socket.exists() {
            fs::remove_file(socket).unwrap();
        }
        let listener = UnixListener::bind(socket).unwrap();
        listener.set_nonblocking(true).unwrap();
        let calls = Arc::new(Mutex::new(Vec::new()));
        let (stop, stopped) = oneshot::channel();
        let noted = Arc::clone(&calls);
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let answer = Arc::new(answer);
            runtime.block_on(async move {
                let listener = tokio::net::UnixListener::from_std(listener).unwrap();
                let serve = async {
                    loop {
                        let (stream, _) = listener.accept().await.unwrap();
                        let mut connection = h2::server::handshake(stream).await.unwrap();
                        // One caller at a time is all that the tests have. Its bodies come while it is waited for.
                        while let Some(Ok((request, respond))) = connection.accept().await {
                            let path = request.uri().path().to_owned();
                            noted.lock().unwrap().push(path.clone());
                            let answer = Arc::clone(&answer);
                            tokio::spawn(async move {
                                let mut body = request.into_body();
                                let mut question = Vec::new();
                                while let Some(Ok(data)) = body.data().await {
                                    question.extend_from_slice(&data);
                                }
                                let reply = answer(&path, &question);
                                if matches!(reply, Reply::Nothing) {
                                    // Held for good.
                                    std::future::pending::<()>().await;
                                }
                                send(respond, reply);
                            });
                        }
                    }
                };
                tokio::select! {
                    () = serve => {}
                    _ = stopped => {}
                }
            });
        });
        Self { calls, stop: Some(stop), thread: Some(thread) }
    }

    /// Which calls came, and forgets them.
    pub(crate) fn calls(&self) -> Vec<String> {
        std::mem::take(&mut self.calls.lock().unwrap())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn send(mut respond: SendResponse<Bytes>, reply: Reply) {
    match reply {
        Reply::Nothing => {}
        Reply::Refusal(code, text) => {
            let response = Response::builder().header("content-type", "application/grpc");
            let refusal = response.header("grpc-status", code).header("grpc-message", text).body(()).unwrap();
            drop(respond.send_response(refusal, true).unwrap());
        }
        Reply::Message(body) => {
            let head = Response::builder().header("content-type", "application/grpc").body(()).unwrap();
            let mut stream = respond.send_response(head, false).unwrap();
            stream.send_data(Bytes::from(framed(&body)), false).unwrap();
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", HeaderValue::from_static("0"));
            stream.send_trailers(trailers).unwrap();
        }
    }
}

/// A gRPC message: not compressed, then its length.
pub(crate) fn framed(message: &[u8]) -> Vec<u8> {
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    [&[0][..], &length, message].concat()
}

/// A field with a length, of which a length in two bytes is the longest that is needed here.
pub(crate) fn field(number: u8, content: &[u8]) -> Vec<u8> {
    let length = u16::try_from(content.len()).unwrap();
    let low = u8::try_from(length & 0x7f).unwrap();
    let high = u8::try_from(length >> 7).unwrap();
    let length = if high == 0 { vec![low] } else { vec![low | 0x80, high] };
    [&[number << 3 | 2][..], &length, content].concat()
}
