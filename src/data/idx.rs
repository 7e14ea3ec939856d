//! The IDX format, read with suspicion: every length is checked before memory is spent on it.
//!
//! A file is a header of big-endian 32-bit numbers and then bytes. Images: 2051, count, 28, 28, then 784 bytes an image.
//! Labels: 2049, count, then one byte a label.

use std::{
    fmt,
    io::{self, Read},
};

use super::{CLASSES, PIXELS, SIDE};

/// The most images that a file may hold: 784 MB, a dozen times MNIST. A header that asks for more is taken for damage.
pub const MAX_COUNT: u32 = 1_000_000;

/// The most memory reserved because a header says so; beyond it, memory grows with the bytes that really arrive.
const MAX_RESERVE: usize = 64 << 20;

/// What an IDX file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// 28 x 28 bytes each.
    Images,
    /// One byte each, below [`CLASSES`].
    Labels,
}

impl Content {
    /// The number that such a file begins with.
    pub fn magic(self) -> u32 {
        match self {
            Content::Images => 2051,
            Content::Labels => 2049,
        }
    }

    /// Bytes of its header.
    pub fn header(self) -> usize {
        match self {
            Content::Images => 16,
            Content::Labels => 8,
        }
    }

    /// Bytes of one image or label.
    pub fn item(self) -> usize {
        match self {
            Content::Images => PIXELS,
            Content::Labels => 1,
        }
    }

    /// Bytes of a whole file of `count`.
    pub fn length(self, count: u32) -> u64 {
        self.header() as u64 + u64::from(count) * self.item() as u64
    }

    fn from_magic(magic: u32) -> Option<Self> {
        [Content::Images, Content::Labels].into_iter().find(|content| content.magic() == magic)
    }
}

impl fmt::Display for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Content::Images => "images",
            Content::Labels => "labels",
        })
    }
}

/// A checked IDX file: its header is right, its length exact, its labels in range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Idx {
    /// What it holds.
    pub content: Content,
    /// How many.
    pub count: u32,
    /// The whole file, header included.
    pub bytes: Vec<u8>,
}

impl Idx {
    /// The bytes after the header.
    pub fn body(&self) -> &[u8] {
        self.bytes.get(self.content.header()..).unwrap_or_default()
    }
}

/// What is wrong with a file. Its text goes on from the name of the file.
#[derive(Debug)]
pub enum Fault {
    /// Reading failed.
    Read(io::Error),
    /// It is a directory, a pipe, or the like.
    NotAFile(&'static str),
    /// Its name ends in `.gz`, and its bytes are not gzip's.
    NotGzip,
    /// There is nothing in it.
    Empty,
    /// It ends before the end of its header.
    ShortHeader(usize),
    /// It begins with another number.
    Magic(Content, u32),
    /// The header's count is 0 or absurd.
    Count(Content, u32),
    /// The count is not the one that the data set is known for.
    OtherCount(Content, u32, u32),
    /// Images of another size.
    Size(u32, u32),
    /// Fewer bytes than the header announces: (found, announced).
    Short(u64, u64),
    /// More bytes than the header announces.
    Long(u64),
    /// A label that is no class: (index, value).
    Label(usize, u8),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Read(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                f.write_str("it is truncated: the gzip data ends too early (or stray bytes follow it)")
            }
            Fault::Read(error) => write!(f, "it cannot be read or unpacked: {error}"),
            Fault::NotAFile(what) => write!(f, "it is {what} instead of a file"),
            Fault::NotGzip => f.write_str("it is not gzip data (if it is unpacked already, take .gz off its name)"),
            Fault::Empty => f.write_str("it is empty"),
            Fault::ShortHeader(bytes) => {
                write!(f, "it is truncated: {bytes} bytes are no IDX header")
            }
            Fault::Magic(wanted, found) => match Content::from_magic(*found) {
                Some(other) => write!(f, "it holds {other} where {wanted} should be: are two files swapped?"),
                None if found >> 16 == 0x1f8b => {
                    f.write_str("it is gzip data under a name without .gz: add .gz to its name")
                }
                None => write!(
                    f,
                    "it is not an IDX file of {wanted}: it begins with {found:#010x} instead of {:#010x}",
                    wanted.magic()
                ),
            },
            Fault::Count(content, 0) => write!(f, "it holds no {content}"),
            Fault::Count(content, count) => {
                write!(f, "its header announces {count} {content}, more than the {MAX_COUNT} that are allowed")
            }
            Fault::OtherCount(content, found, wanted) => {
                write!(f, "its header announces {found} {content} where {wanted} are expected")
            }
            Fault::Size(rows, columns) => {
                write!(f, "its images are {rows} x {columns} pixels instead of {SIDE} x {SIDE}")
            }
            Fault::Short(found, wanted) => {
                write!(f, "it is truncated: {found} bytes of data where the header announces {wanted}")
            }
            Fault::Long(wanted) => write!(f, "it is too long: bytes follow the {wanted} that the header announces"),
            Fault::Label(index, value) => {
                write!(f, "label {index} is {value}: labels are below {CLASSES}")
            }
        }
    }
}

/// Reads a file of `content` to its end, and checks it. `count` is how many it must hold, where that is known.
///
/// Memory: never more than the header announces, which is refused above [`MAX_COUNT`], and above 64 MiB never more than
/// twice what has really been read.
pub fn read(mut reader: impl Read, content: Content, count: Option<u32>) -> Result<Idx, Fault> {
    let mut header = [0_u8; 16];
    let header = header.get_mut(..content.header()).unwrap_or_default();
    let found = fill(&mut reader, header).map_err(Fault::Read)?;
    let (numbers, _) = header.as_chunks::<4>();
    let numbers: Vec<u32> = numbers.iter().map(|n| u32::from_be_bytes(*n)).collect();
    // The number in front tells most about a wrong file, so it is looked at even when the header is cut.
    match (found, numbers.first()) {
        (0, _) => return Err(Fault::Empty),
        (4.., Some(&magic)) if magic != content.magic() => {
            return Err(Fault::Magic(content, magic));
        }
        _ if found < header.len() => return Err(Fault::ShortHeader(found)),
        _ => {}
    }
    let announced = numbers.get(1).copied().unwrap_or_default();
    if announced == 0 || announced > MAX_COUNT {
        return Err(Fault::Count(content, announced));
    }
    if let Some(wanted) = count.filter(|&wanted| wanted != announced) {
        return Err(Fault::OtherCount(content, announced, wanted));
    }
    if let (Some(&rows), Some(&columns)) = (numbers.get(2), numbers.get(3))
        && (rows, columns) != (SIDE as u32, SIDE as u32)
    {
        return Err(Fault::Size(rows, columns));
    }

    let length = content.length(announced);
    let body = length - content.header() as u64;
    let mut bytes = Vec::with_capacity(MAX_RESERVE.min(length as usize));
    bytes.extend_from_slice(header);
    let found = reader.by_ref().take(body).read_to_end(&mut bytes).map_err(Fault::Read)? as u64;
    if found < body {
        return Err(Fault::Short(found, body));
    }
    // One more read has to find the end. It also makes a gzip reader compare its CRC.
    if fill(&mut reader, &mut [0]).map_err(Fault::Read)? > 0 {
        return Err(Fault::Long(body));
    }
    let idx = Idx { content, count: announced, bytes };
    if content == Content::Labels
        && let Some((index, &label)) = idx.body().iter().enumerate().find(|&(_, &label)| usize::from(label) >= CLASSES)
    {
        return Err(Fault::Label(index, label));
    }
    Ok(idx)
}

/// The bytes of an IDX file of `content` around `body`. `None` when the body is not a whole number of items.
pub fn write(content: Content, body: &[u8]) -> Option<Vec<u8>> {
    if !body.len().is_multiple_of(content.item()) {
        return None;
    }
    let count = u32::try_from(body.len() / content.item()).ok()?;
    let mut bytes = Vec::with_capacity(content.header() + body.len());
    bytes.extend(content.magic().to_be_bytes());
    bytes.extend(count.to_be_bytes());
    if content == Content::Images {
        bytes.extend((SIDE as u32).to_be_bytes());
        bytes.extend((SIDE as u32).to_be_bytes());
    }
    bytes.extend_from_slice(body);
    Some(bytes)
}

/// Reads until `buffer` is full or the reader is at its end; says how many bytes came.
fn fill(reader: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match reader.read(rest) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests;
