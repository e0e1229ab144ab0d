//! Asks a worker of mlbus with async-nats; NATS_URL says where.

use async_nats::{Client, Error, HeaderMap, Message, Request};
use futures::StreamExt;
use serde_json::{Value, from_slice, json};
use std::io::{Write, stdout};
use std::time::Duration;
use tokio::time::{Instant, timeout, timeout_at};

const TIMEOUT: Duration = Duration::from_secs(30); // a request waits for ten seconds otherwise

fn timed() -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert("Ml-Timeout-Ms", TIMEOUT.as_millis().to_string()); // the worker drops what nobody waits for
    headers
}

fn header<'a>(message: &'a Message, name: &str) -> Option<&'a str> {
    message.headers.as_ref()?.get(name).map(|value| value.as_str())
}

/// The body of a reply or frame; an error is one with two more headers.
fn checked(message: &Message) -> Result<Value, Error> {
    match header(message, "Nats-Service-Error-Code") {
        Some(code) => Err(format!("{code} {}", header(message, "Nats-Service-Error").unwrap_or_default()).into()),
        None => Ok(from_slice(&message.payload)?),
    }
}

async fn ask(client: &Client, subject: &'static str, body: Value) -> Result<Value, Error> {
    let request = Request::new().headers(timed()).payload(body.to_string().into()).timeout(Some(TIMEOUT));
    checked(&client.send_request(subject, request).await?)
}

/// Prints the pieces of a text as they come, and how it ended.
async fn generate(client: &Client, body: Value, cancel_after: usize) -> Result<(), Error> {
    let (id, inbox, deadline) = (nuid::next(), client.new_inbox(), Instant::now() + TIMEOUT);
    let mut frames = client.subscribe(inbox.clone()).await?;
    let mut headers = timed();
    headers.insert("Ml-Stream", "true");
    headers.insert("Ml-Request-Id", id.as_str());
    client.publish_with_reply_and_headers("ml.generate", inbox, headers, body.to_string().into()).await?;
    let mut pieces = 0;
    while let Ok(Some(frame)) = timeout_at(deadline, frames.next()).await {
        if frame.payload.is_empty() {
            break; // the end
        }
        if header(&frame, "Ml-Request-Id") != Some(&id) {
            continue; // somebody else's
        }
        let body = checked(&frame)?;
        match header(&frame, "Ml-Event") {
            Some("token") => {
                print!("{}", body["text"].as_str().unwrap_or_default());
                stdout().flush()?;
                pieces += 1;
                if pieces == cancel_after {
                    // Leaving is not enough: where a library has one inbox for all, the worker hears nothing.
                    client.publish(format!("ml.cancel.{id}"), "".into()).await?;
                }
            }
            Some("done") => {
                println!("\nfinish: {}", body["finish_reason"].as_str().unwrap_or_default());
                return Ok(());
            }
            _ => {}
        }
    }
    Err("cut off: the stream ended without `done` and without an error".into())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let url = std::env::var("NATS_URL").unwrap_or("nats://127.0.0.1:4222".into());
    let client = async_nats::connect(url).await?;

    let reply = ask(&client, "ml.embed", json!({"text": "def hello(): pass"})).await?;
    print!("embed: {}, {} dimensions,", reply["model"].as_str().unwrap_or_default(), reply["dimensions"]);
    for value in reply["embedding"].as_array().into_iter().flatten().take(3) {
        print!(" {:.4}", value.as_f64().unwrap_or_default());
    }
    println!();

    let candidates = ["a + b", "open(path).read()", "requests.get(url)"];
    let ranking = ask(&client, "ml.similarity", json!({"query": "read a file", "candidates": candidates})).await?;
    for ranked in ranking["results"].as_array().into_iter().flatten() {
        println!("rank: {} {:.2}", ranked["index"], ranked["score"].as_f64().unwrap_or_default());
    }

    print!("stream: ");
    generate(&client, json!({"prompt": "def fib(n):", "max_tokens": 48, "temperature": 0}), 0).await?;

    if let Err(error) = ask(&client, "ml.embed", json!({"text": "def hello(): pass", "lang": "python"})).await {
        println!("error: {error}");
    }

    print!("cancel: ");
    generate(&client, json!({"prompt": "def fib(n):", "max_tokens": 1000, "min_tokens": 1000}), 3).await?;

    let inbox = client.new_inbox();
    let mut pongs = client.subscribe(inbox.clone()).await?;
    client.publish_with_reply("$SRV.PING.ml", inbox, "".into()).await?;
    let mut workers = Vec::new(); // nobody knows how many there are: listen until it is quiet
    while let Ok(Some(pong)) = timeout(Duration::from_millis(500), pongs.next()).await {
        workers.push(checked(&pong)?["metadata"]["models"].as_str().unwrap_or_default().to_string());
    }
    println!("workers: {} {}", workers.len(), workers.join(" "));
    Ok(())
}
