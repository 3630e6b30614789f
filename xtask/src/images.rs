//! Builds container images from Debian's packages, for machines that reach no image registry.
//!
//! The base is made by debootstrap, from the mirror that the machine's own apt uses; the server is
//! installed into it by `docker build`, from there or from the index that the machine's own pip uses. An
//! image that exists is kept.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum};

use crate::apt::Apt;
use crate::pip::Pip;
use crate::shell;

/// Build the container images that the tests use where no image can be pulled.
#[derive(Args)]
pub(crate) struct Images {
    /// Which ones; all, if none is named
    #[arg(value_enum)]
    images: Vec<Choice>,
    /// Build again what exists
    #[arg(long)]
    force: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Choice {
    #[value(name = "rabbitmq-4.3")]
    Rabbitmq43,
    #[value(name = "rabbitmq-4.0")]
    Rabbitmq40,
    #[value(name = "rabbitmq-3.10")]
    Rabbitmq310,
    Redis,
    Localstack,
    All,
}

impl Images {
    pub(crate) fn run(&self) -> Result<()> {
        let all = [Choice::All];
        let choices = if self.images.is_empty() {
            &all[..]
        } else {
            &self.images
        };
        for image in choices.iter().flat_map(|choice| choice.images()) {
            if self.force || !image.exists() {
                image.build()?;
            }
            println!("{} is there", image.tag);
        }
        Ok(())
    }
}

impl Choice {
    const fn images(self) -> &'static [Image] {
        match self {
            Self::Rabbitmq43 => &[Image::RABBITMQ_4_3],
            Self::Rabbitmq40 => &[Image::RABBITMQ_4_0],
            Self::Rabbitmq310 => &[Image::RABBITMQ_3_10],
            Self::Redis => &[Image::REDIS],
            Self::Localstack => &[Image::LOCALSTACK],
            Self::All => &[
                Image::RABBITMQ_4_3,
                Image::REDIS,
                Image::LOCALSTACK,
                Image::RABBITMQ_4_0,
                Image::RABBITMQ_3_10,
            ],
        }
    }
}

/// An image that can be built here.
#[derive(Clone, Copy)]
pub(crate) struct Image {
    /// Its name here.
    tag: &'static str,
    /// The image that the server's makers publish.
    official: &'static str,
    /// The Debian suite that carries this version.
    suite: &'static str,
    /// Where the server comes from.
    packages: Packages,
    /// The files that `docker build` needs.
    files: &'static [(&'static str, &'static str)],
}

/// Whose packages are installed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Packages {
    Debian,
    DebianAndPython,
}

const RABBITMQ_FILES: &[(&str, &str)] = &[
    ("Dockerfile", include_str!("../images/rabbitmq/Dockerfile")),
    (
        "docker-entrypoint.sh",
        include_str!("../images/rabbitmq/docker-entrypoint.sh"),
    ),
];

impl Image {
    pub(crate) const RABBITMQ_4_3: Self = Self {
        tag: "backstop-test/rabbitmq:4.3",
        official: "rabbitmq:4.3",
        suite: "forky",
        packages: Packages::Debian,
        files: RABBITMQ_FILES,
    };

    pub(crate) const RABBITMQ_4_0: Self = Self {
        tag: "backstop-test/rabbitmq:4.0",
        official: "rabbitmq:4.0",
        suite: "trixie",
        packages: Packages::Debian,
        files: RABBITMQ_FILES,
    };

    pub(crate) const RABBITMQ_3_10: Self = Self {
        tag: "backstop-test/rabbitmq:3.10",
        official: "rabbitmq:3.10",
        suite: "bookworm",
        packages: Packages::Debian,
        files: RABBITMQ_FILES,
    };

    pub(crate) const REDIS: Self = Self {
        tag: "backstop-test/redis:8",
        official: "redis:8",
        suite: "forky",
        packages: Packages::Debian,
        files: &[("Dockerfile", include_str!("../images/redis/Dockerfile"))],
    };

    /// SQS. The official image is another emulator's: LocalStack's own wants a token.
    pub(crate) const LOCALSTACK: Self = Self {
        tag: "backstop-test/localstack:2026.3",
        official: "softwaremill/elasticmq-native:1.7.1",
        suite: "trixie",
        packages: Packages::DebianAndPython,
        files: &[
            (
                "Dockerfile",
                include_str!("../images/localstack/Dockerfile"),
            ),
            (
                "requirements.txt",
                include_str!("../images/localstack/requirements.txt"),
            ),
        ],
    };

    /// Sees to it that this image or the official one is on this machine.
    pub(crate) fn ensure(self) -> Result<()> {
        if self.exists() || is_present(self.official) {
            return Ok(());
        }
        println!("pulling {}", self.official);
        if shell::succeeds_within("docker", &["pull", "--quiet", self.official], PULL_TIMEOUT) {
            return Ok(());
        }
        println!("it cannot be pulled here");
        self.build()
    }

    fn exists(self) -> bool {
        is_present(self.tag)
    }

    fn build(self) -> Result<()> {
        let apt = Apt::of_this_machine();
        let base = format!("backstop-test/base:{}", self.suite);
        if !is_present(&base) {
            build_base(self.suite, &base, &apt)?;
        }
        println!("building {}", self.tag);
        let context = Scratch::new(self.tag)?;
        for (name, content) in self.files {
            fs::write(context.path.join(name), content)?;
        }
        apt.write_configuration(&context.path.join("apt"))?;
        if self.packages == Packages::DebianAndPython {
            Pip::of_this_machine().write_configuration(&context.path.join("pip"))?;
        }
        let base_argument = format!("BASE={base}");
        let mut build = Command::new("docker");
        build.args(["build", "--quiet", "--network", "host"]);
        build.args(["--build-arg", &base_argument, "--tag", self.tag]);
        apt.pass_proxy(&mut build);
        for name in apt.proxy_names() {
            // A value would show in the list of processes: docker takes it from its environment.
            build.args(["--build-arg", name]);
        }
        shell::run(build.arg(&context.path))
    }
}

const PULL_TIMEOUT: std::time::Duration = std::time::Duration::from_mins(3);

fn is_present(tag: &str) -> bool {
    shell::output("docker", &["image", "inspect", "--format", "{{.Id}}", tag]).is_some()
}

/// A folder that is removed in the end.
struct Scratch {
    path: PathBuf,
}

impl Scratch {
    fn new(name: &str) -> Result<Self> {
        let name = name.replace(['/', ':'], "-");
        let path = shell::root().join("target/images").join(name);
        // What an interrupted build left.
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path)?;
        Ok(Self { path })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

fn build_base(suite: &str, tag: &str, apt: &Apt) -> Result<()> {
    println!("building {tag}, for half a minute or so");
    install_debootstrap()?;
    let root = Scratch::new(tag)?;
    let mut debootstrap = Command::new("debootstrap");
    debootstrap.args(["--variant=minbase", suite]);
    debootstrap.arg(&root.path);
    // Without a mirror debootstrap takes Debian's own. The empty argument stands for that where a
    // script follows.
    debootstrap.arg(apt.mirror().unwrap_or_default());
    // A suite that is newer than debootstrap has no script of its own.
    let scripts = Path::new("/usr/share/debootstrap/scripts");
    if !scripts.join(suite).exists() {
        debootstrap.arg(scripts.join("sid"));
    }
    apt.pass_proxy(&mut debootstrap);
    let log = root.path.with_extension("log");
    let log_file = fs::File::create(&log)?;
    debootstrap.stdout(log_file.try_clone()?).stderr(log_file);
    shell::run(&mut debootstrap).with_context(|| format!("see {}", log.display()))?;
    import(&root.path, tag)
}

fn import(root: &Path, tag: &str) -> Result<()> {
    let mut tar = Command::new("tar")
        .arg("--directory")
        .arg(root)
        .args(["--create", "."])
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot run tar")?;
    let archive = tar.stdout.take().context("tar has no output")?;
    let imported = Command::new("docker")
        .args(["import", "-", tag])
        .stdin(archive)
        .stdout(Stdio::null())
        .status()
        .context("cannot run docker")?;
    if !tar.wait()?.success() || !imported.success() {
        bail!("cannot import {tag}");
    }
    Ok(())
}

fn install_debootstrap() -> Result<()> {
    let is_root = shell::output("id", &["-u"]).is_some_and(|id| id.trim() == "0");
    if !is_root {
        bail!(
            "images are built by debootstrap, which needs root: run `cargo xtask images` as root, or \
             let docker pull the official images"
        );
    }
    if shell::output("debootstrap", &["--version"]).is_some() {
        return Ok(());
    }
    let apt_get = |arguments: &[&str]| {
        let mut command = Command::new("apt-get");
        command.args(["--quiet", "--yes", "-o", "Acquire::Retries=5"]);
        command.args(["-o", "DPkg::Lock::Timeout=300"]);
        shell::run(
            command
                .args(arguments)
                .env("DEBIAN_FRONTEND", "noninteractive"),
        )
    };
    apt_get(&["update"])
        .and_then(|()| apt_get(&["install", "debootstrap"]))
        .context(
            "images are built by debootstrap, which is not installed and apt-get cannot install",
        )
}
