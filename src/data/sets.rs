//! The four files of an IDX data set, and the data sets whose checksums are known.

use super::idx::Content;

/// One of the four files of a data set.
#[derive(Debug, PartialEq, Eq)]
pub struct FileSpec {
    /// Its published name, without `.gz`.
    pub name: &'static str,
    /// The other common spelling of its name.
    pub dotted: &'static str,
    /// What it holds.
    pub content: Content,
    /// Whether it belongs to the training images (or else to the test images).
    pub train: bool,
}

impl FileSpec {
    /// The names that are accepted, the one looked for first in front.
    ///
    /// The packed file wins where both stand: it carries its own CRC, it is what `data fetch` writes, and so a fetch
    /// heals a folder in which an unpacked file is damaged.
    pub fn names(&self) -> [String; 4] {
        [format!("{}.gz", self.name), format!("{}.gz", self.dotted), self.name.to_owned(), self.dotted.to_owned()]
    }
}

/// The four files, in the order in which they are reported.
pub static FILES: [FileSpec; 4] = [
    FileSpec {
        name: "train-images-idx3-ubyte",
        dotted: "train-images.idx3-ubyte",
        content: Content::Images,
        train: true,
    },
    FileSpec {
        name: "train-labels-idx1-ubyte",
        dotted: "train-labels.idx1-ubyte",
        content: Content::Labels,
        train: true,
    },
    FileSpec {
        name: "t10k-images-idx3-ubyte",
        dotted: "t10k-images.idx3-ubyte",
        content: Content::Images,
        train: false,
    },
    FileSpec {
        name: "t10k-labels-idx1-ubyte",
        dotted: "t10k-labels.idx1-ubyte",
        content: Content::Labels,
        train: false,
    },
];

/// A data set whose sizes and checksums are known.
#[derive(Debug)]
pub struct Published {
    /// What `--dataset` calls it.
    pub name: &'static str,
    /// The folder inside a data directory that holds it; empty for the directory itself.
    pub folder: &'static str,
    /// Training images.
    pub train: u32,
    /// Test images.
    pub test: u32,
    /// SHA-256 of each decompressed file, in the order of [`FILES`].
    ///
    /// Of the decompressed bytes, because the same file is in circulation under several gzip compressions.
    pub sha256: [&'static str; 4],
    /// Where the `.gz` files can be had: their names are appended.
    pub mirrors: &'static [&'static str],
}

impl Published {
    /// How many images or labels the file `spec` holds.
    pub fn count(&self, spec: &FileSpec) -> u32 {
        if spec.train { self.train } else { self.test }
    }

    /// SHA-256 of the file `spec`, decompressed.
    pub fn sha256_of(&self, spec: &FileSpec) -> Option<&'static str> {
        let index = FILES.iter().position(|file| file == spec)?;
        self.sha256.get(index).copied()
    }
}

/// LeCun, Cortes and Burges' handwritten digits.
pub static MNIST: Published = Published {
    name: "mnist",
    folder: "",
    train: 60_000,
    test: 10_000,
    sha256: [
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    ],
    mirrors: &["https://storage.googleapis.com/cvdf-datasets/mnist/", "https://ossci-datasets.s3.amazonaws.com/mnist/"],
};

/// Zalando's pictures of clothes, in the same format.
pub static FASHION: Published = Published {
    name: "fashion",
    folder: "fashion",
    train: 60_000,
    test: 10_000,
    sha256: [
        "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    ],
    mirrors: &[
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
    ],
};

/// The data set that `--dataset name` means, when its checksums are known.
pub fn published(name: &str) -> Option<&'static Published> {
    [&MNIST, &FASHION].into_iter().find(|set| set.name == name)
}
