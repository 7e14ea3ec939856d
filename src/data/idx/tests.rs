use proptest::prelude::*;

use super::*;

/// Counts what is asked of it, and yields zeros for ever: a bomb.
struct Bomb<'a> {
    head: &'a [u8],
    yielded: u64,
    limit: u64,
}

impl Read for Bomb<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if !self.head.is_empty() {
            return self.head.read(buffer);
        }
        let count = (buffer.len() as u64).min(self.limit - self.yielded) as usize;
        buffer[..count].fill(0);
        self.yielded += count as u64;
        Ok(count)
    }
}

fn header(numbers: &[u32]) -> Vec<u8> {
    numbers.iter().flat_map(|n| n.to_be_bytes()).collect()
}

fn fault(bytes: &[u8], content: Content) -> String {
    read(bytes, content, None).expect_err("a fault").to_string()
}

#[test]
fn two_labels_are_read_from_literal_bytes() {
    let idx = read(&[0, 0, 8, 1, 0, 0, 0, 2, 7, 9][..], Content::Labels, Some(2)).expect("labels");
    assert_eq!((idx.count, idx.body()), (2, &[7, 9][..]));
}

#[test]
fn one_image_is_read_from_literal_bytes() {
    let mut bytes = vec![0, 0, 8, 3, 0, 0, 0, 1, 0, 0, 0, 28, 0, 0, 0, 28];
    bytes.extend((0..784).map(|i| (i % 251) as u8));
    let idx = read(&bytes[..], Content::Images, None).expect("an image");
    assert_eq!((idx.count, idx.body().len(), idx.body()[783]), (1, 784, 30));
}

#[test]
fn each_fault_is_told_apart() {
    let labels = |numbers: &[u32], body: &[u8]| [&header(numbers)[..], body].concat();
    assert_eq!(fault(&[], Content::Labels), "it is empty");
    assert!(fault(&[0, 0, 8, 1, 0], Content::Labels).contains("5 bytes are no IDX header"));
    assert!(fault(&[0, 0], Content::Images).contains("2 bytes are no IDX header"));
    assert!(fault(&header(&[2051, 1]), Content::Labels).contains("holds images where labels"));
    assert!(fault(&header(&[2049, 1]), Content::Images).contains("holds labels where images"));
    assert!(fault(&[0x1f, 0x8b, 8, 0], Content::Images).contains("add .gz to its name"));
    assert!(fault(&header(&[0x3c68_746d, 0]), Content::Labels).contains("0x3c68746d"));
    assert!(fault(&header(&[2049, 0]), Content::Labels).contains("no labels"));
    assert!(fault(&header(&[2049, u32::MAX]), Content::Labels).contains("4294967295 labels"));
    assert!(fault(&header(&[2051, 1, 28, 27]), Content::Images).contains("28 x 27"));
    assert!(fault(&labels(&[2049, 3], &[1, 2]), Content::Labels).contains("2 bytes of data"));
    assert!(fault(&labels(&[2049, 1], &[1, 2]), Content::Labels).contains("too long"));
    assert!(fault(&labels(&[2049, 2], &[1, 10]), Content::Labels).contains("label 1 is 10"));
    let other = read(&labels(&[2049, 1], &[1])[..], Content::Labels, Some(2));
    assert!(other.expect_err("count").to_string().contains("1 labels where 2"));
}

#[test]
fn a_stream_without_end_is_left_after_one_byte_too_many() {
    // One image, and then zeros for ever (here: 1 GiB of them).
    let head = header(&[2051, 1, 28, 28]);
    let mut bomb = Bomb { head: &head, yielded: 0, limit: 1 << 30 };
    let error = read(&mut bomb, Content::Images, None).expect_err("too long");
    assert!(error.to_string().contains("too long"), "{error}");
    assert_eq!(bomb.yielded, 784 + 1);
}

#[test]
fn a_header_that_lies_reserves_at_most_64_mib() {
    // A million images announced, three bytes there.
    let mut bytes = header(&[2051, MAX_COUNT, 28, 28]);
    bytes.extend([1, 2, 3]);
    assert!(fault(&bytes, Content::Images).contains("3 bytes of data"));
    assert_eq!(MAX_RESERVE, 67_108_864);
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..2000), images: bool) {
        let content = if images { Content::Images } else { Content::Labels };
        if let Ok(idx) = read(&bytes[..], content, None) {
            prop_assert_eq!(idx.bytes, bytes);
        }
    }

    #[test]
    fn a_changed_header_is_refused_or_read_within_its_length(
        count in 1_u32..4,
        at in 0_usize..16,
        to: u8,
        images: bool,
    ) {
        let content = if images { Content::Images } else { Content::Labels };
        let body = vec![3; count as usize * content.item()];
        let mut bytes = write(content, &body).expect("whole items");
        let at = at % content.header();
        let same = bytes[at] == to;
        bytes[at] = to;
        match read(&bytes[..], content, None) {
            Ok(idx) => {
                prop_assert!(same);
                prop_assert!(idx.bytes.capacity() <= MAX_RESERVE);
            }
            Err(_) => prop_assert!(!same),
        }
    }

    #[test]
    fn what_is_written_is_read_back(labels in prop::collection::vec(0_u8..10, 1..300)) {
        let bytes = write(Content::Labels, &labels).expect("labels");
        let idx = read(&bytes[..], Content::Labels, Some(labels.len() as u32)).expect("round trip");
        prop_assert_eq!(idx.body(), &labels[..]);
    }

    #[test]
    fn images_written_are_read_back(count in 1_usize..5, seed: u8) {
        let body: Vec<u8> = (0..count * PIXELS).map(|i| (i as u8).wrapping_mul(seed)).collect();
        let bytes = write(Content::Images, &body).expect("images");
        let idx = read(&bytes[..], Content::Images, None).expect("round trip");
        prop_assert_eq!(idx.body(), &body[..]);
    }

    #[test]
    fn every_cut_is_noticed(cut in 0_usize..800) {
        let bytes = write(Content::Images, &[9; PIXELS]).expect("one image");
        prop_assert_eq!(read(&bytes[..cut], Content::Images, None).is_ok(), cut == 800);
    }
}
