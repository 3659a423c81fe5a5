//! Files that say what a device is: one that its device plugin wrote, and one for each attachment that has it.

use std::path::{Path, PathBuf};

use super::StateError;
use crate::root::Root;
use crate::spec::device_info::{DIRECTORY, DeviceInfo};
use crate::spec::{ConfError, ContainerId, Delegate};
use crate::whole;

/// The files of a node.
#[derive(Clone, Debug)]
pub struct DeviceInfos {
    dir: PathBuf,
}

/// Why what is known of a device could not be read or passed on.
#[derive(Debug, thiserror::Error)]
pub enum DeviceInfoError {
    /// A file operation failed.
    #[error(transparent)]
    State(#[from] StateError),
    /// Its author wrote something else.
    #[error("{} is not what is known of a device", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: ConfError,
    },
}

impl DeviceInfos {
    /// Those of `root`. Nothing is created before the first write.
    pub fn new(root: &Root) -> Self {
        Self { dir: root.join(DIRECTORY) }
    }

    /// The file of an attachment: where its plugins find what is known of their device, or say it themselves.
    pub fn file(&self, delegate: &Delegate, sandbox: &ContainerId) -> Option<PathBuf> {
        delegate.device_file(sandbox).map(|name| self.attachments().join(name))
    }

    /// Passes on what the device plugin wrote, if it did.
    pub fn pass_on(&self, delegate: &Delegate, sandbox: &ContainerId) -> Result<(), DeviceInfoError> {
        let (Some(file), Some(resource), Some(device)) =
            (self.file(delegate, sandbox), &delegate.resource, &delegate.selection.device_id)
        else {
            return Ok(());
        };
        let theirs = self.dir.join("dp").join(DeviceInfo::plugin_file(resource, device));
        if let Some(info) = load(&theirs)? {
            whole::replace(&file, info.to_json().to_string().as_bytes()).map_err(StateError::from)?;
        }
        Ok(())
    }

    /// What is known now of an attachment's device: its plugins may have known it better.
    pub fn read(
        &self,
        delegate: &Delegate,
        sandbox: &ContainerId,
    ) -> Result<Option<DeviceInfo>, DeviceInfoError> {
        match self.file(delegate, sandbox) {
            Some(file) => load(&file),
            None => Ok(None),
        }
    }

    /// Removes the file of an attachment.
    pub fn remove(&self, delegate: &Delegate, sandbox: &ContainerId) -> Result<(), StateError> {
        if let Some(file) = self.file(delegate, sandbox) {
            whole::remove(&file)?;
        }
        Ok(())
    }

    /// Removes what writers that were killed have left.
    pub fn sweep(&self) -> Result<usize, StateError> {
        Ok(whole::sweep(&self.attachments())?)
    }

    fn attachments(&self) -> PathBuf {
        self.dir.join("cni")
    }
}

fn load(path: &Path) -> Result<Option<DeviceInfo>, DeviceInfoError> {
    let Some(bytes) = whole::read(path).map_err(StateError::from)? else { return Ok(None) };
    let invalid = |source| DeviceInfoError::Invalid { path: path.to_owned(), source };
    DeviceInfo::parse(&bytes).map(Some).map_err(invalid)
}
