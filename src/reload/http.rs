//! `PUT /v1/pipelines/{id}` and `POST /v1/pipelines/{id}/plan`: another plan, wished for or only looked at.

use actix_web::http::StatusCode;
use actix_web::{HttpRequest, HttpResponse, web};
use fieldstream_pipelines::{Change, Problems};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::admin::{Node, no_pipeline};
use crate::reload::Answer;

/// Largest pipeline that is read.
pub(crate) const MAX_PIPELINE: usize = 1 << 20;

/// Media types of YAML (RFC 9512), and what older clients call it.
const YAML: [&str; 4] = ["application/yaml", "application/x-yaml", "text/yaml", "text/x-yaml"];

/// What may stand behind the `?`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Wish {
    #[serde(default)]
    accept_state_loss: bool,
}

/// A problem in the form of RFC 9457, with members of its own.
fn problem(status: StatusCode, title: &str, detail: &str, more: Value) -> HttpResponse {
    let mut body = json!({ "type": "about:blank", "title": title, "status": status.as_u16(), "detail": detail });
    if let (Some(body), Value::Object(more)) = (body.as_object_mut(), more) {
        body.extend(more);
    }
    HttpResponse::build(status).content_type("application/problem+json").body(body.to_string())
}

fn invalid(problems: &Problems) -> HttpResponse {
    let data = |problem: &fieldstream_pipelines::Problem| {
        let mut data = serde_json::to_value(problem).unwrap_or_default();
        data["text"] = Value::from(problem.to_string());
        data
    };
    let list: Vec<Value> = problems.iter().map(data).collect();
    let detail = format!("{} problems; the pipeline goes on with its old plan", list.len());
    problem(StatusCode::UNPROCESSABLE_ENTITY, "this is no pipeline that can run", &detail, json!({ "problems": list }))
}

/// Status, title and detail of a problem.
type Refusal = (StatusCode, &'static str, &'static str);

/// The body as text, or why it is not read.
fn text<'a>(request: &HttpRequest, body: &'a web::Bytes) -> Result<&'a str, Refusal> {
    let kind = request.headers().get("content-type").and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if !YAML.contains(&kind.as_str()) {
        return Err((StatusCode::UNSUPPORTED_MEDIA_TYPE, "not YAML", "send the pipeline as application/yaml"));
    }
    std::str::from_utf8(body).map_err(|_| (StatusCode::BAD_REQUEST, "not text", "a pipeline is UTF-8 text"))
}

/// Who reaches the port from elsewhere has shown no password, and a pipeline may read any secret of this node.
fn only_here(node: &Node) -> Result<(), Refusal> {
    if node.admin_is_local() {
        return Ok(());
    }
    let detail = "pipelines are changed only while the admin server listens on a loopback address; change the file and use --watch";
    Err((StatusCode::FORBIDDEN, "not from elsewhere", detail))
}

/// What `PUT /v1/pipelines/{id}` does.
pub(crate) async fn put(
    node: web::Data<Node>,
    id: web::Path<String>,
    wish: web::Query<Wish>,
    request: HttpRequest,
    body: web::Bytes,
) -> HttpResponse {
    let Some(pipeline) = node.find(&id).cloned() else { return no_pipeline(&id) };
    let text = match only_here(&node).and_then(|()| text(&request, &body)) {
        Ok(text) => text.to_owned(),
        Err((status, title, detail)) => return problem(status, title, detail, Value::Null),
    };
    // A task of its own: a client that leaves must not leave the change half-way.
    let changed = tokio::spawn(async move { pipeline.change("the request", &text, wish.accept_state_loss, false).await }).await;
    match changed {
        Ok(answer) => answered(answer),
        Err(error) => problem(StatusCode::INTERNAL_SERVER_ERROR, "the change did not end", &error.to_string(), Value::Null),
    }
}

fn answered(answer: Answer) -> HttpResponse {
    let why = answer.why_not().unwrap_or_default();
    match answer {
        Answer::Unchanged(change) => HttpResponse::Ok().json(json!({ "outcome": "unchanged", "change": change })),
        Answer::Applied(change) => HttpResponse::Ok().json(json!({ "outcome": "applied", "change": change })),
        Answer::Invalid(problems) => invalid(&problems),
        Answer::NoSuccessor(change) => conflict("it cannot take the place of what runs", &why, Some(&change)),
        Answer::Loses(change) => conflict("state would be lost; ?accept_state_loss=true allows it", &why, Some(&change)),
        Answer::Busy => conflict("another change is under way", &why, None),
        Answer::Ended => conflict("the pipeline has ended", &why, None),
        Answer::Refused(_) => conflict("the old plan goes on", &why, None),
        Answer::Reverted(_) => problem(
            StatusCode::INTERNAL_SERVER_ERROR,
            "the new plan failed and the old one runs again",
            &why,
            json!({ "outcome": "reverted" }),
        ),
    }
}

fn conflict(title: &str, why: &str, change: Option<&Change>) -> HttpResponse {
    problem(StatusCode::CONFLICT, title, why, change.map_or(Value::Null, |change| json!({ "outcome": "refused", "change": change })))
}

/// What `POST /v1/pipelines/{id}/plan` says.
pub(crate) async fn plan(node: web::Data<Node>, id: web::Path<String>, request: HttpRequest, body: web::Bytes) -> HttpResponse {
    let Some(pipeline) = node.find(&id) else { return no_pipeline(&id) };
    let text = match only_here(&node).and_then(|()| text(&request, &body)) {
        Ok(text) => text,
        Err((status, title, detail)) => return problem(status, title, detail, Value::Null),
    };
    match pipeline.look("the request", text) {
        Ok((_, change)) => {
            let mut said = serde_json::to_value(&change).unwrap_or_default();
            said["text"] = Value::from(change.to_string());
            HttpResponse::Ok().json(said)
        }
        Err(problems) => invalid(&problems),
    }
}
