//! What is ours, by the mark that we put on it: a link's alias. Read from the kernel in the moment before a change.

use crate::links::link::Link;

/// A tap's alias.
pub(crate) const TAP: &str = "banger tap";
/// What a bridge's alias begins with. Its address follows: the one that we gave it, among those that others did.
pub(crate) const BRIDGE: &str = "banger bridge";

/// Whether a link is a tap with our mark.
pub(crate) fn is_tap(link: &Link) -> bool {
    link.kind == "tun" && link.alias == TAP && link.tun.is_some_and(|tun| tun.is_tap)
}

/// Whether a link is a bridge with our mark.
pub(crate) fn is_bridge(link: &Link) -> bool {
    let marked = |rest: &str| rest.is_empty() || rest.starts_with(' ');
    link.kind == "bridge" && link.alias.strip_prefix(BRIDGE).is_some_and(marked)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::links::link::Tun;

    #[test]
    fn a_bridge_is_known_by_kind_and_alias() {
        let link = |kind: &str, alias: &str| Link { kind: kind.into(), alias: alias.into(), ..Link::default() };
        for ours in ["banger bridge", "banger bridge 172.16.0.1/24"] {
            assert!(is_bridge(&link("bridge", ours)));
            assert!(!is_bridge(&link("veth", ours)));
        }
        assert!(!is_bridge(&link("bridge", "banger bridges")) && !is_bridge(&link("bridge", "")));
    }

    #[test]
    fn a_tap_is_known_by_kind_and_alias() {
        let tun = |is_tap| Some(Tun { is_tap, ..Tun::default() });
        let ours = Link { kind: "tun".into(), alias: TAP.into(), tun: tun(true), ..Link::default() };
        assert!(is_tap(&ours));
        for foreign in [
            Link { alias: String::new(), ..ours.clone() },
            Link { alias: "banger tap 2".into(), ..ours.clone() },
            Link { tun: tun(false), ..ours.clone() },
            Link { tun: None, ..ours.clone() },
            Link { kind: "veth".into(), ..ours.clone() },
        ] {
            assert!(!is_tap(&foreign), "{foreign:?}");
        }
    }
}
