//! One download into one `.part` file, taken up where an earlier one stopped.

use std::{
    fs::{File, OpenOptions},
    io::{Read, Seek, SeekFrom, Write},
    path::Path,
};

use ureq::http::{Response, StatusCode, header};

use super::{Event, Options};
use crate::Error;

/// Why a download did not end well.
pub(super) enum Failure {
    /// The mirror or the way to it; another mirror may do.
    Mirror(String),
    /// Our own disk; no mirror helps.
    Disk(Error),
}

/// The HTTP client. Proxies come from the environment; every wait has an end.
pub(super) fn agent(options: &Options) -> ureq::Agent {
    let patience = Some(options.patience);
    let config = ureq::Agent::config_builder()
        .http_status_as_error(false)
        // The checksums are of the files as they are: nothing on the way is to pack or unpack them.
        .accept_encoding("identity")
        .timeout_resolve(patience)
        .timeout_connect(patience)
        .timeout_recv_response(patience)
        .timeout_per_read(patience);
    let config = if options.proxy_from_env { config } else { config.proxy(None) };
    config.build().into()
}

/// Downloads `url` into `part`, after what is in it already. At most `most` bytes.
///
/// What arrived stays in `part` when the connection breaks, so that it need not come again.
pub(super) fn download(
    agent: &ureq::Agent,
    url: &str,
    name: &str,
    part: &Path,
    most: u64,
    tell: &mut dyn FnMut(Event<'_>),
) -> Result<(), Failure> {
    let disk = |error| {
        let hint = "is the disk full? choose another directory with --to";
        Failure::Disk(Error::io("write", part, error).hint(hint))
    };
    let mut file = OpenOptions::new().create(true).truncate(false).write(true).open(part).map_err(disk)?;
    let mut have = file.seek(SeekFrom::End(0)).map_err(disk)?;
    let mut response = get(agent, url, have)?;
    if have > 0 && !continues_at(&response, have) {
        // The server sends the whole file, or finds our part longer than its file: begin again.
        have = 0;
        if response.status() != StatusCode::OK {
            response = get(agent, url, have)?;
        }
    }
    if !response.status().is_success() {
        return Err(Failure::Mirror(format!("the server answers {}", response.status())));
    }
    // Only now, with a good answer, is what an earlier attempt left given up.
    file.set_len(have).map_err(disk)?;
    file.seek(SeekFrom::Start(have)).map_err(disk)?;
    let announced = response.body().content_length();
    tell(Event::Started(name, have, announced.map(|rest| have + rest)));
    let received = copy(response, &mut file, most.saturating_sub(have), disk, tell)?;
    match announced {
        Some(announced) if received < announced => {
            Err(Failure::Mirror(format!("the connection ended after {received} of {announced} bytes")))
        }
        _ => Ok(()),
    }
}

fn get(agent: &ureq::Agent, url: &str, from: u64) -> Result<Response<ureq::Body>, Failure> {
    let request = agent.get(url);
    let request = if from > 0 { request.header(header::RANGE, format!("bytes={from}-")) } else { request };
    request.call().map_err(|error| Failure::Mirror(error.to_string()))
}

/// Whether the answer is the rest of the file from byte `have` on.
fn continues_at(response: &Response<ureq::Body>, have: u64) -> bool {
    response.status() == StatusCode::PARTIAL_CONTENT
        && response
            .headers()
            .get(header::CONTENT_RANGE)
            .and_then(|range| range.to_str().ok())
            .is_some_and(|range| range.starts_with(&format!("bytes {have}-")))
}

/// Copies the body to the file: how many bytes came.
fn copy(
    response: Response<ureq::Body>,
    file: &mut File,
    most: u64,
    disk: impl Fn(std::io::Error) -> Failure,
    tell: &mut dyn FnMut(Event<'_>),
) -> Result<u64, Failure> {
    let mut reader = response.into_body().into_reader();
    let mut buffer = vec![0; 1 << 16];
    let mut received = 0_u64;
    loop {
        let piece = match reader.read(&mut buffer) {
            Ok(0) => return Ok(received),
            Ok(count) => buffer.get(..count).unwrap_or_default(),
            Err(error) => {
                return Err(Failure::Mirror(format!("the connection broke after {received} bytes: {error}")));
            }
        };
        received += piece.len() as u64;
        if received > most {
            // Nothing of it can be of use.
            file.set_len(0).map_err(&disk)?;
            return Err(Failure::Mirror("it sends more bytes than the file has".to_owned()));
        }
        file.write_all(piece).map_err(&disk)?;
        tell(Event::Received(piece.len() as u64));
    }
}
