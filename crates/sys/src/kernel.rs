//! Which kernel runs here.

/// Its release and version, as `uname -rv` prints them: another build of the same release has another version.
pub fn identity() -> String {
    let host = rustix::system::uname();
    [host.release(), host.version()].map(|text| text.to_string_lossy()).join(" ")
}

#[cfg(test)]
mod tests {
    #[test]
    fn it_is_what_uname_prints() {
        let said = std::process::Command::new("uname").arg("-rv").output().expect("a uname").stdout;
        assert_eq!(super::identity(), String::from_utf8_lossy(&said).trim_end());
    }
}
