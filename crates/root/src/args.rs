//! The command line.

use crate::log::Level;
use crate::settings::Flags;
use std::ffi::OsString;

/// What the command line asks for.
pub(crate) enum Asked {
    /// To serve.
    Serve(Flags),
    /// To print something and end.
    Print(String),
}

const HELP: &str = "\
bangerd-root: banger's privileged operations, for one owner, over one Unix socket

Usage: bangerd-root [OPTIONS]

  --socket PATH        the socket [/run/banger-root/bangerd-root.sock]; one that systemd passes is taken instead
  --state-dir DIR      the owner's state directory [/var/lib/banger]
  --runtime-dir DIR    the owner's runtime directory [/run/banger]
  --install-meta FILE  who the owner is [/etc/banger/install.toml]
  --config FILE        settings and limits [/etc/banger/root.toml, which may be missing]
  --log-level LEVEL    debug, info, warn or error [info]
  --version            print the version
  --help               print this
";

/// Reads the arguments, the program's name left out. What is no UTF-8 is refused: as text it would be another path.
pub(crate) fn parse(arguments: impl Iterator<Item = OsString>) -> Result<Asked, String> {
    let mut flags = Flags::default();
    let arguments = arguments.map(|argument| argument.into_string().map_err(|bad| format!("{bad:?} is no UTF-8")));
    let mut arguments = arguments.collect::<Result<Vec<_>, _>>()?.into_iter();
    while let Some(argument) = arguments.next() {
        let (flag, inline) = match argument.split_once('=') {
            Some((flag, value)) => (flag, Some(value.to_owned())),
            None => (argument.as_str(), None),
        };
        match flag {
            "--version" if inline.is_none() => {
                return Ok(Asked::Print(concat!("bangerd-root ", env!("CARGO_PKG_VERSION"), "\n").into()));
            }
            "--help" | "-h" if inline.is_none() => return Ok(Asked::Print(HELP.into())),
            _ => {}
        }
        let value = || inline.or_else(|| arguments.next()).ok_or_else(|| format!("{flag} needs a value"));
        match flag {
            "--socket" => once(flag, &mut flags.socket, value()?)?,
            "--state-dir" => once(flag, &mut flags.state_dir, value()?)?,
            "--runtime-dir" => once(flag, &mut flags.runtime_dir, value()?)?,
            "--install-meta" => once(flag, &mut flags.install_meta, value()?)?,
            "--config" => once(flag, &mut flags.config, value()?)?,
            "--log-level" => {
                let level = Level::parse(&value()?).ok_or("--log-level takes debug, info, warn or error")?;
                once(flag, &mut flags.log_level, level)?;
            }
            _ => return Err(format!("{argument:?} is no option of bangerd-root; --help lists them")),
        }
    }
    Ok(Asked::Serve(flags))
}

fn once<T>(flag: &str, place: &mut Option<T>, value: T) -> Result<(), String> {
    match place.replace(value) {
        None => Ok(()),
        Some(_) => Err(format!("{flag} stands twice")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(arguments: &[&str]) -> Result<Asked, String> {
        parse(arguments.iter().map(OsString::from))
    }

    #[test]
    fn flags_and_mistakes() {
        let Ok(Asked::Serve(flags)) = read(&["--socket", "/s", "--state-dir=/a=b", "--log-level", "Debug"]) else {
            panic!("not to serve");
        };
        assert_eq!((flags.socket.as_deref(), flags.state_dir.as_deref()), (Some("/s"), Some("/a=b")));
        assert_eq!(flags.log_level, Some(Level::Debug));
        for bad in
            [&["--sock", "x"][..], &["--socket"], &["x"], &["--socket", "a", "--socket", "b"], &["--log-level=x"]]
        {
            assert!(read(bad).is_err(), "{bad:?}");
        }
        let latin: OsString = std::os::unix::ffi::OsStringExt::from_vec(b"--socket=/\xe9".to_vec());
        assert!(parse([latin].into_iter()).is_err_and(|mistake| mistake.contains("no UTF-8")));
        assert!(matches!(read(&["--version"]), Ok(Asked::Print(text)) if text.starts_with("bangerd-root 0")));
    }
}
