//! The admin server: metrics, health, and a look into running pipelines. Loopback unless told otherwise.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use actix_web::http::header::ContentType;
use actix_web::{App, HttpResponse, HttpServer, Responder, web};
use anyhow::{Context, Result};
use fieldstream_pipelines::graph;
use fieldstream_runtime::engine::Engine;
use fieldstream_runtime::metrics;
use fieldstream_runtime::status::{State, Status};
use serde_json::json;

use crate::reload::Supervised;
use crate::reload::http::{self as reload, MAX_PIPELINE};

/// Connections at once; an admin port serves scrapers and people.
const MAX_CONNECTIONS: usize = 64;
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
const MAX_BODY: usize = 64 << 10;
/// A savepoint waits for the sinks.
const SAVEPOINT_TIMEOUT: Duration = Duration::from_secs(60);

/// What the handlers share.
pub(crate) struct Node {
    pub(crate) engine: Arc<Engine>,
    pub(crate) pipelines: Vec<Arc<Supervised>>,
    /// Where the admin server listens.
    address: OnceLock<SocketAddr>,
}

impl Node {
    pub(crate) fn new(engine: Arc<Engine>, pipelines: Vec<Arc<Supervised>>) -> Self {
        Self { engine, pipelines, address: OnceLock::new() }
    }

    pub(crate) fn find(&self, name: &str) -> Option<&Arc<Supervised>> {
        self.pipelines.iter().find(|p| &*p.name == name)
    }

    /// True when only this machine reaches the admin server.
    pub(crate) fn admin_is_local(&self) -> bool {
        self.address.get().is_some_and(|address| address.ip().is_loopback())
    }
}

/// Serves until the process ends. Gives the address really bound.
///
/// # Errors
/// If the address cannot be bound.
pub(crate) fn serve(address: SocketAddr, node: Arc<Node>) -> Result<SocketAddr> {
    let node = web::Data::from(node);
    let shared = node.clone();
    let server = HttpServer::new(move || {
        App::new()
            .app_data(node.clone())
            .app_data(web::PayloadConfig::new(MAX_BODY))
            .route("/metrics", web::get().to(metrics_text))
            .route("/livez", web::get().to(live))
            .route("/readyz", web::get().to(ready))
            .route("/v1/pipelines", web::get().to(pipelines))
            .service(web::resource("/v1/pipelines/{id}").app_data(web::PayloadConfig::new(MAX_PIPELINE)).route(web::put().to(reload::put)))
            .service(
                web::resource("/v1/pipelines/{id}/plan")
                    .app_data(web::PayloadConfig::new(MAX_PIPELINE))
                    .route(web::post().to(reload::plan)),
            )
            .route("/v1/pipelines/{id}/status", web::get().to(status))
            .route("/v1/pipelines/{id}/ledger", web::get().to(ledger))
            .route("/v1/pipelines/{id}/graph", web::get().to(picture))
            .route("/v1/pipelines/{id}/devices/{device}", web::get().to(device))
            .route("/v1/pipelines/{id}/checkpoints", web::post().to(savepoint))
    });
    let server = server.workers(1).max_connections(MAX_CONNECTIONS).client_request_timeout(REQUEST_TIMEOUT).disable_signals();
    let server = server.bind(address).with_context(|| format!("the admin server cannot listen on {address}"))?;
    if !address.ip().is_loopback() {
        tracing::warn!("the admin server asks nobody for a password: whoever reaches {address} sees metrics and readings");
    }
    let bound = server.addrs().first().copied().unwrap_or(address);
    // There is one server, so it is set once.
    let _ = shared.address.set(bound);
    tokio::spawn(server.run());
    tracing::info!("admin server on http://{bound}");
    Ok(bound)
}

async fn metrics_text(node: web::Data<Node>) -> impl Responder {
    let views: Vec<(&str, &Status)> = node.pipelines.iter().map(|p| (&*p.name, &*p.status)).collect();
    match metrics::render(&views, &node.engine) {
        Ok(text) => HttpResponse::Ok().content_type("text/plain; version=0.0.4; charset=utf-8").body(text),
        Err(error) => HttpResponse::InternalServerError().body(error.to_string()),
    }
}

async fn live() -> impl Responder {
    HttpResponse::Ok().content_type(ContentType::plaintext()).body("live\n")
}

async fn ready(node: web::Data<Node>) -> impl Responder {
    let reasons: Vec<String> =
        node.pipelines.iter().flat_map(|p| p.status.not_ready(&node.engine).into_iter().map(move |r| format!("{}: {r}", p.name))).collect();
    let body = json!({ "ready": reasons.is_empty(), "reasons": reasons });
    if reasons.is_empty() { HttpResponse::Ok().json(body) } else { HttpResponse::ServiceUnavailable().json(body) }
}

async fn pipelines(node: web::Data<Node>) -> impl Responder {
    let list: Vec<_> = node.pipelines.iter().map(|p| json!({ "id": p.name, "state": p.status.lock().state })).collect();
    HttpResponse::Ok().json(list)
}

pub(crate) fn no_pipeline(name: &str) -> HttpResponse {
    let body = json!({ "type": "about:blank", "title": "no such pipeline", "status": 404, "detail": format!("this node runs no pipeline called {name}") });
    HttpResponse::NotFound().content_type("application/problem+json").body(body.to_string())
}

async fn status(node: web::Data<Node>, path: web::Path<String>) -> impl Responder {
    match node.find(&path) {
        Some(pipeline) => HttpResponse::Ok().json(pipeline.status.describe()),
        None => no_pipeline(&path),
    }
}

async fn ledger(node: web::Data<Node>, path: web::Path<String>) -> impl Responder {
    match node.find(&path) {
        Some(pipeline) => HttpResponse::Ok().json(pipeline.status.ledger()),
        None => no_pipeline(&path),
    }
}

async fn picture(node: web::Data<Node>, path: web::Path<String>) -> impl Responder {
    match node.find(&path) {
        Some(pipeline) => HttpResponse::Ok().content_type(ContentType::plaintext()).body(graph(&pipeline.plan()).mermaid()),
        None => no_pipeline(&path),
    }
}

/// What a POST to `checkpoints` says.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct SavepointBody {
    label: String,
}

async fn savepoint(node: web::Data<Node>, path: web::Path<String>, body: web::Json<SavepointBody>) -> impl Responder {
    let Some(pipeline) = node.find(&path) else { return no_pipeline(&path) };
    let saved = tokio::time::timeout(SAVEPOINT_TIMEOUT, pipeline.status.savepoint(&body.label)).await;
    let (status, detail) = match saved {
        Ok(Ok(partitions)) => return HttpResponse::Created().json(json!({ "label": body.label, "partitions": partitions })),
        Ok(Err(why)) => (409, why),
        Err(_) => (504, "it becomes true when every sink has committed that far; see `fieldstream checkpoint ls` later".to_owned()),
    };
    let body = json!({ "type": "about:blank", "title": "no savepoint", "status": status, "detail": detail });
    let mut answer = if status == 409 { HttpResponse::Conflict() } else { HttpResponse::GatewayTimeout() };
    answer.content_type("application/problem+json").body(body.to_string())
}

async fn device(node: web::Data<Node>, path: web::Path<(String, String)>) -> impl Responder {
    let (name, device) = path.into_inner();
    let Some(pipeline) = node.find(&name) else { return no_pipeline(&name) };
    if matches!(pipeline.status.lock().state, State::Finished | State::Stopped | State::Failed) {
        return HttpResponse::Conflict()
            .content_type("application/problem+json")
            .body(json!({ "title": "the pipeline has ended", "status": 409 }).to_string());
    }
    match pipeline.status.inspect(&node.engine, &device).await {
        Some(found) => HttpResponse::Ok().json(found),
        None => {
            let body = json!({ "type": "about:blank", "title": "no such device", "status": 404, "detail": format!("no partition on this node has an active device {device}") });
            HttpResponse::NotFound().content_type("application/problem+json").body(body.to_string())
        }
    }
}
