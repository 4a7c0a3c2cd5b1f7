//! Tests that need a kernel of their own: each runs again as a process in a fresh network namespace.

use std::process::Command;

const INSIDE: &str = "WEIR_TEST_NAMESPACE";

/// Runs the test of this path again in a namespace, and the body there; where that is not allowed, it says so and passes.
/// `with` is what the test is started through, for other privileges than root's.
pub fn in_namespace(test: &str, with: &[&str], body: impl FnOnce()) {
    if std::env::var_os(INSIDE).is_some() {
        return body();
    }
    let reason = match Command::new("unshare").args(["--net", "nft", "list", "tables"]).output() {
        Ok(output) if output.status.success() => None,
        Ok(output) => Some(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        Err(error) => Some(error.to_string()),
    };
    if let Some(reason) = reason {
        println!("skipped, for want of root, namespaces or nft: {reason}");
        return;
    }
    let status = Command::new("unshare")
        .arg("--net")
        .args(with)
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(INSIDE, "1")
        .status()
        .unwrap();
    assert!(status.success(), "{test} failed in its namespace");
}
