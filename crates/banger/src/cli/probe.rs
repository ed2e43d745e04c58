//! `banger helper probe`: where a guest's packet ends.

use super::problem::Problem;
use super::{Probe, output, text};
use serde_json::value::RawValue;
use wire::Method;
use wire::client::Error;
use wire::probe::{End, Probed};

pub(crate) fn run(probe: &Probe) -> Result<(), Problem> {
    let failed = |error| Problem::of_call(error, &probe.reach.socket, probe.reach.timeout);
    let client = crate::root::client(&probe.reach.socket, probe.reach.timeout);
    let params = serde_json::json!({"guest_ip": probe.guest_ip, "tap": probe.tap});
    let params = RawValue::from_string(params.to_string()).map_err(|error| Problem::usage("bad names").why(error))?;
    let said = client.call_raw(Method::ProbeNetwork.name(), &params).map_err(failed)?;
    let found: Probed = serde_json::from_str(said.get()).map_err(|error| failed(Error::Reply(error.to_string())))?;
    if probe.json {
        // As it came: a newer helper may say more than this program knows.
        output::json(&said)?;
    } else if found.end == End::Open {
        output::data(&format!("open\t{}\n", text::line(&found.uplink)))?;
    }
    match found.end {
        End::Open => Ok(()),
        _ => Err(closed(&found)),
    }
}

/// The way is not open: that is no success, whoever asks.
fn closed(found: &Probed) -> Problem {
    let code = match found.end {
        End::Open => "open",
        End::Dropped => "dropped",
        End::Queued => "queued",
        End::NoRoute => "no_route",
        End::NotForwarded => "not_forwarded",
        End::Lost => "lost",
    };
    let Some(by) = &found.by else { return Problem::new(code, found.why.clone()) };
    let verb = if found.end == End::Queued { "waits at" } else { "ends at" };
    let problem = Problem::new(
        code,
        format!("the packet {verb} {} {} {}, {}", by.family, by.table, by.chain, rule(by.handle, &by.rule)),
    );
    let problem = problem.why(&found.why);
    match by.table.as_str() {
        "banger" => problem,
        _ => problem.fix(format!("see it whole: nft -a list chain {} {} {}", by.family, by.table, by.chain)),
    }
}

fn rule(handle: u64, text: &str) -> String {
    match handle {
        0 => text.to_owned(),
        _ => format!("handle {handle}: {text}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wire::probe::EndedBy;

    #[test]
    fn a_rule_is_named_on_one_line() {
        let by = EndedBy {
            family: "ip".into(),
            table: "filter".into(),
            chain: "FORWARD".into(),
            handle: 7,
            rule: "counter drop comment \"a\u{1b}b\"".into(),
        };
        let found =
            Probed { end: End::Dropped, by: Some(by), why: "another firewall drops it".into(), ..Probed::default() };
        assert_eq!(
            closed(&found).to_string(),
            "error[dropped]: the packet ends at ip filter FORWARD, handle 7: counter drop comment \"a\\u{1b}b\"\n  \
             why: another firewall drops it\n  fix: see it whole: nft -a list chain ip filter FORWARD\n"
        );
        let lost = Probed { end: End::NoRoute, why: "no route".into(), ..Probed::default() };
        assert_eq!(closed(&lost).to_string(), "error[no_route]: no route\n");
    }
}
