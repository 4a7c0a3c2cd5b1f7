use std::io;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn health() -> NodeHealth {
    NodeHealth::new(Family::ALL, Duration::from_mins(1))
}

fn synced() -> NodeHealth {
    let health = health();
    for family in Family::ALL {
        health.applied(family, at(0));
    }
    health
}

fn shown((code, body): (StatusCode, Body)) -> (u16, Value) {
    (code.as_u16(), serde_json::to_value(body).unwrap())
}

#[test]
fn p52_a_change_may_wait_for_sixty_seconds() {
    let health = health();
    assert!(health.is_healthy(at(1000)), "before the first sync");
    health.queued(Family::Ipv4, at(1000));
    health.queued(Family::Ipv4, at(1050));
    assert!(health.is_healthy(at(1059)));
    assert!(!health.is_healthy(at(1060)), "the oldest change counts");
    assert!(health.is_healthy(at(990)), "a clock set back is no delay");
    health.taken(Family::Ipv4);
    assert!(!health.is_healthy(at(1060)), "a sync that hangs is no progress");
    health.applied(Family::Ipv4, at(1061));
    assert!(health.is_healthy(at(9000)), "idle is healthy");
}

#[test]
fn p52_what_comes_during_a_sync_waits_on_and_a_failed_sync_resets_nothing() {
    let health = health();
    health.queued(Family::Ipv6, at(1000));
    health.taken(Family::Ipv6);
    health.queued(Family::Ipv6, at(1030));
    health.failed(Family::Ipv6, at(1040));
    assert!(!health.is_healthy(at(1060)));
    health.taken(Family::Ipv6);
    health.queued(Family::Ipv6, at(1070));
    health.applied(Family::Ipv6, at(1080));
    assert!(health.is_healthy(at(1129)));
    assert!(!health.is_healthy(at(1130)));
}

#[test]
fn p51_the_body_of_healthz() {
    let health = health();
    health.queued(Family::Ipv4, at(0));
    health.taken(Family::Ipv4);
    health.applied(Family::Ipv4, at(1));
    health.applied(Family::Ipv6, at(0));
    let expected = json!({
        "lastUpdated": "1970-01-01T00:00:10Z",
        "currentTime": "1970-01-01T00:00:10Z",
        "nodeEligible": true,
        "healthy": true,
        "status": {
            "IPv4": { "lastUpdated": "1970-01-01T00:00:01Z", "healthy": true },
            "IPv6": { "lastUpdated": "1970-01-01T00:00:00Z", "healthy": true },
        },
    });
    assert_eq!(shown(health.healthz(at(10))), (200, expected));
    let text = serde_json::to_string(&health.healthz(at(10)).1).unwrap();
    assert!(text.starts_with(r#"{"lastUpdated":"1970-01-01T00:00:10Z","currentTime":"#), "{text}");
}

#[test]
fn a_node_that_has_programmed_nothing_yet_lives_but_takes_no_traffic() {
    let health = health();
    health.applied(Family::Ipv4, at(1));
    assert_eq!(shown(health.healthz(at(10))).0, 503);
    assert_eq!(shown(health.livez(at(10))).0, 200);
    health.inherited(Family::Ipv6);
    assert_eq!(shown(health.healthz(at(10))).0, 200, "an earlier process has left its rules");
}

#[test]
fn p52_a_first_sync_that_fails_is_a_change_that_waits() {
    let health = health();
    health.failed(Family::Ipv4, at(1000));
    assert!(health.is_healthy(at(1059)));
    assert!(!health.is_healthy(at(1060)));
}

#[test]
fn p52_one_late_family_makes_the_node_unhealthy_and_leaves_last_updated_old() {
    let health = health();
    health.applied(Family::Ipv4, at(5));
    health.queued(Family::Ipv6, at(10));
    let (code, body) = shown(health.healthz(at(70)));
    assert_eq!((code, &body["healthy"], &body["lastUpdated"]), (503, &json!(false), &json!("1970-01-01T00:00:05Z")));
    assert_eq!(body["status"]["IPv4"]["healthy"], json!(true));
    assert_eq!(body["status"]["IPv6"]["healthy"], json!(false));
}

#[test]
fn p53_p54_an_ineligible_node_fails_healthz_but_not_livez() {
    let health = synced();
    health.set_eligible(false);
    let (code, body) = shown(health.healthz(at(10)));
    assert_eq!((code, &body["healthy"], &body["nodeEligible"]), (503, &json!(true), &json!(false)));
    let (code, body) = shown(health.livez(at(10)));
    assert_eq!((code, &body["healthy"], body.get("nodeEligible")), (200, &json!(true), None));
    health.queued(Family::Ipv4, at(0));
    assert_eq!(shown(health.livez(at(60))).0, 503);
}

/// Status line, headers in lower case, and body of one request.
pub async fn ask(address: std::net::SocketAddr, method: &str, path: &str) -> io::Result<(String, String, String)> {
    let mut stream = tokio::net::TcpStream::connect(address).await?;
    stream.write_all(format!("{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or(io::ErrorKind::UnexpectedEof)?;
    let (status, headers) = head.split_once("\r\n").unwrap_or((head, ""));
    Ok((status.to_owned(), headers.to_lowercase(), body.to_owned()))
}

#[tokio::test]
async fn p51_p54_the_server_answers_with_code_headers_and_counts() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let health = synced();
    health.set_eligible(false);
    let (counted, mut counts) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(serve(listener, health, move |probe, code| counted.send((probe, code.as_u16())).unwrap()));

    let (status, headers, body) = ask(address, "GET", "/healthz").await.unwrap();
    assert_eq!(status, "HTTP/1.1 503 Service Unavailable");
    assert!(headers.contains("content-type: application/json"), "{headers}");
    assert!(headers.contains("x-content-type-options: nosniff"), "{headers}");
    assert!(body.contains(r#""nodeEligible":false"#), "{body}");
    assert_eq!(ask(address, "GET", "/livez").await.unwrap().0, "HTTP/1.1 200 OK");
    assert_eq!(ask(address, "GET", "/other").await.unwrap().0, "HTTP/1.1 404 Not Found");
    assert_eq!(counts.recv().await, Some((Probe::Healthz, 503)));
    assert_eq!(counts.recv().await, Some((Probe::Livez, 200)));
}
