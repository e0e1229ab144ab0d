//! Reads a vector from MessagePack with async-nats, rmp-serde and serde_bytes; NATS_URL says where.

use async_nats::{Client, Error, HeaderMap, Request};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::time::Duration;

const TIMEOUT: Duration = Duration::from_secs(30);

#[derive(Serialize)]
struct Embed {
    text: &'static str,
    encoding_format: &'static str,
}

#[derive(Deserialize)]
struct Bytes {
    #[serde(with = "serde_bytes")] // without it, or as Vec<f32>: one number a byte
    embedding: Vec<u8>,
}

#[derive(Deserialize)]
struct Array {
    embedding: Vec<f32>, // right for `array`
}

async fn embed<T: DeserializeOwned>(client: &Client, encoding_format: &'static str) -> Result<T, Error> {
    // A request is a map of fields: to_vec would make it an array.
    let body = rmp_serde::to_vec_named(&Embed { text: "def hello(): pass", encoding_format })?;
    let mut headers = HeaderMap::new();
    headers.insert("Ml-Timeout-Ms", TIMEOUT.as_millis().to_string());
    let request = Request::new().headers(headers).payload(body.into()).timeout(Some(TIMEOUT));
    let message = client.send_request("ml.embed", request).await?;
    match message.headers.as_ref().and_then(|headers| headers.get("Nats-Service-Error")) {
        Some(error) => Err(error.as_str().into()),
        None => Ok(rmp_serde::from_slice(&message.payload)?),
    }
}

fn show(encoding: &str, vector: &[f32]) {
    println!(
        "{encoding}: {} values, {:.4} {:.4} … {:.4}",
        vector.len(),
        vector[0],
        vector[1],
        vector[vector.len() - 1]
    );
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let url = std::env::var("NATS_URL").unwrap_or("nats://127.0.0.1:4222".into());
    let client = async_nats::connect(url).await?;

    let reply: Bytes = embed(&client, "float32").await?;
    let values = reply.embedding.chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap()));
    let vector: Vec<f32> = values.collect();
    show("float32", &vector);

    let reply: Array = embed(&client, "array").await?;
    show("array", &reply.embedding);
    Ok(())
}
