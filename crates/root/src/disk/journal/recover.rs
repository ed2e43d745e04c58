//! Logs that an earlier helper left, or that can't be finished.

use super::seal::read_seal;
use super::{Image, Journal, Pending, Recovered, no_log};
use crate::fail::Fail;
use crate::host::Host;
use crate::log::{Level, Value};
use rustix::fs::OFlags;
use std::fs::File;
use wire::code::Code;
use wire::path::{HostPath, Root};

/// What a dropped log is told as.
const DROPPED: &str = "write of an image dropped, it is gone";
/// And one that waits.
const AWAY: &str = "an image with half a write is not where it was; the write is finished when it is used";

fn tell(host: &Host, level: Level, message: &str, name: &str, causes: &[String]) {
    let fields = [("name", Value::Text(name, 256)), ("cause", Value::List(causes, 1024))];
    host.log.own(level, message, &fields);
}

/// Whose a log is. Without an image: its path, and why.
enum Whose {
    Image(Box<Image>),
    /// It may have another name by now.
    Away(String, String),
    Nobodys(String, String),
}

impl Journal {
    /// Takes away the logs of images that are gone.
    pub(super) fn drop_those_of_no_image(&self, host: &Host) {
        let names: Vec<String> = self.pending().keys().cloned().collect();
        for name in names {
            // What can't be told stays, and is told where that image is used.
            if let Ok(Whose::Nobodys(path, why) | Whose::Away(path, why)) = self.whose(host, &name)
                && self.strike(&name).is_ok()
            {
                tell(host, Level::Warn, DROPPED, &path, &[why]);
            }
        }
    }

    /// What an earlier helper left: what was not committed is removed, the rest finished. To be called before there are
    /// requests.
    ///
    /// What is found is on the disk first, and what is not found gone from it: the earlier helper may have been killed
    /// before it saw to that, and a name that went or came back behind a loss of power would leave half a write, or undo
    /// what came after a whole one.
    ///
    /// # Errors
    /// It can't be told what there is.
    pub(in crate::disk) fn recover(&self, host: &Host) -> Result<(), String> {
        let unread =
            |cause: &dyn std::fmt::Display| format!("logs of writes to images (lib_dir) can't be read: {cause}");
        self.sync().map_err(|fail| unread(&fail.causes.join(": ")))?;
        for name in self.dir.names().map_err(|error| unread(&error))? {
            if name.starts_with(".write-") || name.starts_with(".unnamed-") {
                // Nothing of it counts, whether it can be removed or not.
                let _ = self.dir.unlink(&name);
            } else if name.starts_with("write-") {
                match self.recover_one(host, &name) {
                    Ok(Recovered::Finished(path)) => tell(host, Level::Info, "write of an image finished", &path, &[]),
                    Ok(Recovered::Dropped(path, why)) => {
                        tell(host, Level::Warn, DROPPED, &path, &[why]);
                    }
                    Ok(Recovered::Away(path, why)) => {
                        self.pending().insert(name.clone(), Pending::CutOff);
                        tell(host, Level::Warn, AWAY, &path, &[why]);
                    }
                    Err(fail) => {
                        self.pending().insert(name.clone(), Pending::CutOff);
                        tell(
                            host,
                            Level::Error,
                            "write of an image can't be finished",
                            &name,
                            &[vec![fail.message], fail.causes].concat(),
                        );
                    }
                }
            }
        }
        Ok(())
    }

    fn recover_one(&self, host: &Host, name: &str) -> Result<Recovered, Fail> {
        match self.whose(host, name)? {
            Whose::Image(image) => self.replay(host, name, &image),
            Whose::Away(path, why) => Ok(Recovered::Away(path, why)),
            Whose::Nobodys(path, why) => self.drop_log(name, &path, &why),
        }
    }

    /// The image that a log is for, where it still has its name.
    fn whose(&self, host: &Host, name: &str) -> Result<Whose, Fail> {
        let file = self.dir.open_at(name, OFlags::RDONLY, 0).map(File::from).map_err(|error| no_log(&error))?;
        let dropped = |path: &str, why: &str| Ok(Whose::Nobodys(path.to_owned(), why.to_owned()));
        let Some((path, handle, _)) = read_seal(&file) else {
            return dropped(name, "its seal is broken");
        };
        // It is known again by its handle, whatever its name is then; by an inode's number alone it would not be.
        let away = |why: &str| {
            let whose = if handle.kind < 0 { Whose::Nobodys } else { Whose::Away };
            Ok(whose(path.clone(), why.to_owned()))
        };
        let at = HostPath::new(&path, &[Root::State], &host.settings.roots, Code::OperationFailed, "image_path");
        let Ok(at) = at else {
            return dropped(&path, "it is not below the state directory");
        };
        let image = match Image::open(host, &at) {
            Ok(image) => image,
            Err(unopened) if unopened.why != crate::places::Why::Failed => {
                return away(&Fail::from(unopened).message);
            }
            Err(unopened) => return Err(unopened.into()),
        };
        if image.handle != handle {
            return away("another file has its name");
        }
        Ok(Whose::Image(Box::new(image)))
    }
}
