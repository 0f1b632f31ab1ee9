//! Where a server is, and who we are for it: what the address says, then `~/.my.cnf`, then the variables that the server's own
//! clients read, then what is usual.

use std::path::PathBuf;
use std::time::Duration;

use super::super::network::address::Address;
use super::super::network::passwords::first_line;
use super::super::remote::Failure;
use super::my_cnf::OptionFile;
use crate::store::StoreSettings;

const PORT: u16 = 3306;

/// Options that are understood; or that have no meaning here, because nothing depends on them.
const KNOWN: &[&str] = &[
    "charset",
    "connect_timeout",
    "database",
    "db",
    "host",
    "password",
    "port",
    "read_default_file",
    "read_default_group",
    "read_timeout",
    "socket",
    "ssl",
    "ssl_ca",
    "ssl_cert",
    "ssl_check_hostname",
    "ssl_disabled",
    "ssl_key",
    "ssl_mode",
    "ssl_verify_cert",
    "ssl_verify_identity",
    "ssl_verify_server_cert",
    "unix_socket",
    "use_unicode",
    "user",
    "write_timeout",
];

/// How to reach a server. No `Debug`: it holds a password.
pub struct Options {
    pub endpoint: Endpoint,
    pub user: String,
    pub password: String,
    pub database: String,
    pub tls: TlsMode,
    /// A file with the certificates of those whom to trust; without it, whom this machine trusts.
    pub authority: Option<PathBuf>,
    /// Ours.
    pub certificate: Option<PathBuf>,
    pub private_key: Option<PathBuf>,
    /// For connecting and logging in.
    pub connect_timeout: Duration,
    /// For each answer.
    pub timeout: Duration,
}

/// Options of other clients about TLS that mean nothing here.
const OTHER_SSL: [&str; 6] = ["ssl_capath", "ssl_cipher", "ssl_crl", "ssl_crlpath", "ssl_fips_mode", "ssl_key_password"];

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    Host(String, u16),
    File(PathBuf),
}

/// How much TLS, by the names of `ssl_mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TlsMode {
    Disabled,
    /// If the server offers it.
    Preferred,
    Required,
    VerifyCa,
    VerifyIdentity,
}

impl Options {
    /// Reads all of it, files included; passwords change.
    pub fn of(settings: &StoreSettings) -> Result<Self, Failure> {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        Self::read(settings, &variable)
    }

    fn read(settings: &StoreSettings, variable: &dyn Fn(&str) -> Option<String>) -> Result<Self, Failure> {
        let address = Address::parse(&settings.url.secret())?;
        for (name, _) in address.options.iter().filter(|(name, _)| !KNOWN.contains(&name.as_str())) {
            let shown = crate::printable::field(name);
            // Whoever has mistyped one of these would not be as safe as wanted.
            if name.starts_with("ssl") && !OTHER_SSL.contains(&name.as_str()) {
                return Err(Failure::permanent(format!("the option `{shown}` of the address is not known"))
                    .with_hint("`ssl_mode`, `ssl_ca`, `ssl_cert` and `ssl_key` are"));
            }
            // Which one is not said: parts of a password that was not encoded look like options.
            tracing::debug!("an option of the address is not known here");
        }
        let file = OptionFile::read(address.option("read_default_file"), variable("HOME").as_deref())?;
        let group = address.option("read_default_group");
        let from_file = |names: &[&str]| file.value(group, names);

        let user = address.user.clone().or_else(|| address.option("user").map(str::to_owned));
        let file_user = from_file(&["user"]);
        let is_same_user = user.is_none() || file_user.is_none() || user == file_user;
        let user = user.or(file_user).or_else(|| variable("USER")).or_else(|| variable("LOGNAME"));
        let user =
            user.ok_or_else(|| Failure::permanent("the address names no user").with_hint("`mysql://USER@HOST/DATABASE`"))?;

        let password = match address.password.clone().or_else(|| address.option("password").map(str::to_owned)) {
            Some(password) => password,
            None => match &settings.password_file {
                Some(path) => first_line(path)?,
                None => {
                    let from_file = from_file(&["password"]).filter(|_| is_same_user);
                    from_file.or_else(|| variable("MYSQL_PWD")).unwrap_or_default()
                }
            },
        };

        let database =
            address.database.clone().or_else(|| address.option("database").or(address.option("db")).map(str::to_owned));
        let database = database
            .or_else(|| from_file(&["database"]))
            .ok_or_else(|| Failure::permanent("the address names no database").with_hint("`mysql://USER@HOST/DATABASE`"))?;

        let seconds = |name: &str| address.option(name)?.parse::<f64>().ok().filter(|seconds| *seconds > 0.0);
        // What is asked for elsewhere is asked for with leases in mind.
        let limited = |name| {
            let limit = seconds(name).and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
            limit.map_or(settings.timeout, |limit| limit.min(settings.timeout))
        };
        let option = |names: &[&str]| {
            let given = names.iter().find_map(|name| address.option(name)).map(str::to_owned);
            given.or_else(|| from_file(names))
        };
        let authority = option(&["ssl_ca"]).map(PathBuf::from);
        let certificate = option(&["ssl_cert"]).map(PathBuf::from);
        Ok(Self {
            endpoint: endpoint(&address, &from_file, variable)?,
            user,
            password,
            database,
            tls: tls_mode(&option, authority.is_some(), certificate.is_some())?,
            authority,
            certificate,
            private_key: option(&["ssl_key"]).map(PathBuf::from),
            connect_timeout: limited("connect_timeout"),
            timeout: limited("read_timeout"),
        })
    }
}

/// The address's own word first. `localhost` is a host like any other one; whoever wants the socket file names it.
fn endpoint(
    address: &Address,
    from_file: &dyn Fn(&[&str]) -> Option<String>,
    variable: &dyn Fn(&str) -> Option<String>,
) -> Result<Endpoint, Failure> {
    if let Some(path) = address.option("unix_socket").or(address.option("socket")) {
        return Ok(Endpoint::File(path.into()));
    }
    let [(host, port)] = address.places.as_slice() else {
        return Err(Failure::permanent("the address names several servers").with_hint("name one, or a proxy before them"));
    };
    let host = Some(host.clone()).filter(|host| !host.is_empty()).or_else(|| address.option("host").map(str::to_owned));
    let file_host = from_file(&["host"]);
    if host.is_none() && file_host.is_none() {
        let file_socket = from_file(&["socket"]);
        let is_elsewhere = port.is_some() || variable("MYSQL_HOST").is_some();
        if let Some(path) = file_socket.or_else(|| variable("MYSQL_UNIX_PORT").filter(|_| !is_elsewhere)) {
            return Ok(Endpoint::File(path.into()));
        }
    }
    // A port belongs to the host that it is written beside.
    let nearby = host.is_none().then(|| from_file(&["port"])).flatten();
    let usual = || nearby.or_else(|| variable("MYSQL_TCP_PORT"));
    let port = match port.clone().or_else(|| address.option("port").map(str::to_owned)).or_else(usual) {
        Some(port) => port.parse().map_err(|_| Failure::permanent("the address's port is no number from 0 to 65535"))?,
        None => PORT,
    };
    let host = host.or(file_host).or_else(|| variable("MYSQL_HOST")).unwrap_or_else(|| "localhost".to_owned());
    Ok(Endpoint::Host(host, port))
}

/// What the spellings of all the drivers come to.
fn tls_mode(option: &dyn Fn(&[&str]) -> Option<String>, has_authority: bool, has_certificate: bool) -> Result<TlsMode, Failure> {
    // To go on with less than was meant would be worse.
    let unclear = || {
        Failure::permanent("an option about TLS in the address is neither `true` nor `false`").with_hint(
        "`ssl_mode` is DISABLED, PREFERRED, REQUIRED, VERIFY_CA or VERIFY_IDENTITY; others, such as `ssl`, are `true` or `false`",
    )
    };
    let flag = |names: &[&str]| option(names).map(|value| truth(&value).ok_or_else(unclear)).transpose();
    let (disabled, wanted) = (flag(&["ssl_disabled"])?, flag(&["ssl"])?);
    let (verify, identity) =
        (flag(&["ssl_verify_cert", "ssl_verify_server_cert"])?, flag(&["ssl_verify_identity", "ssl_check_hostname"])?);
    if disabled == Some(true) || wanted == Some(false) {
        return Ok(TlsMode::Disabled);
    }
    if let Some(mode) = option(&["ssl_mode"]) {
        return match mode.to_ascii_uppercase().as_str() {
            "DISABLED" => Ok(TlsMode::Disabled),
            "PREFERRED" => Ok(TlsMode::Preferred),
            "REQUIRED" => Ok(TlsMode::Required),
            "VERIFY_CA" => Ok(TlsMode::VerifyCa),
            "VERIFY_IDENTITY" => Ok(TlsMode::VerifyIdentity),
            _ => Err(Failure::permanent("`ssl_mode` is none of DISABLED, PREFERRED, REQUIRED, VERIFY_CA and VERIFY_IDENTITY")),
        };
    }
    if identity == Some(true) {
        return Ok(TlsMode::VerifyIdentity);
    }
    if verify == Some(true) || (has_authority && verify.is_none()) {
        return Ok(TlsMode::VerifyCa);
    }
    let is_wanted = has_authority || has_certificate || wanted == Some(true);
    Ok(if is_wanted { TlsMode::Required } else { TlsMode::Preferred })
}

fn truth(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "1" | "true" | "yes" | "on" | "" => Some(true),
        "0" | "false" | "no" | "off" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Endpoint, Failure, Options, TlsMode};
    use crate::store::{StoreSettings, StoreUrl};

    fn read(url: &str, variables: &[(&str, &str)]) -> Result<Options, Failure> {
        let url = StoreUrl::parse(url).expect(url);
        let settings = StoreSettings { url, password_file: None, timeout: Duration::from_secs(5) };
        let variable = |name: &str| variables.iter().find(|(other, _)| *other == name).map(|(_, value)| (*value).to_owned());
        Options::read(&settings, &variable)
    }

    fn host(name: &str, port: u16) -> Endpoint {
        Endpoint::Host(name.to_owned(), port)
    }

    #[test]
    fn an_address_says_all_that_is_needed() {
        let options = read("mysql+pymysql://me:secret@db:3307/meta?charset=utf8mb4&connect_timeout=2", &[]).expect("read");
        assert_eq!(options.endpoint, host("db", 3307));
        assert_eq!((&*options.user, &*options.password, &*options.database), ("me", "secret", "meta"));
        assert_eq!(options.tls, TlsMode::Preferred);
        assert_eq!((options.connect_timeout, options.timeout), (Duration::from_secs(2), Duration::from_secs(5)));
    }

    #[test]
    fn variables_fill_in_what_the_address_leaves_out() {
        let variables = [("MYSQL_HOST", "db"), ("MYSQL_TCP_PORT", "3307"), ("MYSQL_PWD", "secret"), ("USER", "me")];
        let options = read("mysql:///meta", &variables).expect("read");
        assert_eq!(options.endpoint, host("db", 3307));
        assert_eq!((&*options.user, &*options.password), ("me", "secret"));
        let options = read("mysql://you@other/meta", &variables).expect("read");
        assert_eq!((options.endpoint, &*options.user), (host("other", 3307), "you"));
        let options = read("mysql://me@/meta", &[("MYSQL_UNIX_PORT", "/run/my.sock")]).expect("read");
        assert_eq!(options.endpoint, Endpoint::File("/run/my.sock".into()));
        let options = read("mysql://me@localhost/meta", &[("MYSQL_UNIX_PORT", "/run/my.sock")]).expect("read");
        assert_eq!(options.endpoint, host("localhost", 3306));
    }

    #[test]
    fn every_driver_s_word_for_tls_is_understood() {
        for (option, mode) in [
            ("ssl_disabled=true", TlsMode::Disabled),
            ("ssl-mode=DISABLED", TlsMode::Disabled),
            ("ssl_mode=required", TlsMode::Required),
            ("ssl=true", TlsMode::Required),
            ("ssl_ca=/ca.pem", TlsMode::VerifyCa),
            ("ssl_ca=/ca.pem&ssl_verify_cert=false", TlsMode::Required),
            ("ssl_ca=/ca.pem&ssl_check_hostname=false", TlsMode::VerifyCa),
            ("ssl_verify_cert=true&ssl_verify_identity=true", TlsMode::VerifyIdentity),
            ("ssl_mode=VERIFY_IDENTITY&ssl_verify_cert=false", TlsMode::VerifyIdentity),
            ("ssl_cert=/c.pem&ssl_key=/k.pem", TlsMode::Required),
        ] {
            let options = read(&format!("mysql://me@db/meta?{option}"), &[]).expect(option);
            assert_eq!(options.tls, mode, "{option}");
        }
        for mistyped in
            ["ssl_mode=VERIFY", "ssl=require", "ssl_verify_cert=ture", "ssl_verify_identity=required", "ssl_disabled=no!"]
        {
            assert!(read(&format!("mysql://me@db/meta?{mistyped}"), &[]).is_err(), "{mistyped}");
        }
    }

    #[test]
    fn what_is_missing_is_said() {
        for (url, why) in [("mysql://db/meta", "no user"), ("mysql://me@db", "no database"), ("mysql://me@db:x/meta", "port")] {
            let error = read(url, &[]).err().expect(url);
            assert!(error.why.contains(why), "{url}: {}", error.why);
        }
    }

    #[test]
    fn the_password_file_counts_before_the_environment_and_only_its_first_line() {
        let file = tempfile::NamedTempFile::new().expect("file");
        std::fs::write(file.path(), "secret \nmore\n").expect("written");
        let url = StoreUrl::parse("mysql://me@db/meta").expect("address");
        let settings = StoreSettings { url, password_file: Some(file.path().to_owned()), timeout: Duration::from_secs(5) };
        let options = Options::read(&settings, &|name| (name == "MYSQL_PWD").then(|| "other".to_owned())).expect("read");
        assert_eq!(options.password, "secret ");
    }
}
