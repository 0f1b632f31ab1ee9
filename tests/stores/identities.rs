//! Which identity DynamoDB and object stores are used with, and what is said when there is none, or
//! none that a server accepts.

use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::support::injector::{Injector, dynamodb_error, error};
use crate::support::servers::Port;
use crate::support::servers::buckets::{ACCOUNT, BUCKET, s3_url_at, shared_azure, shared_s3};
use crate::support::servers::emulators::shared_dynalite;
use crate::support::stores::Store;
use crate::support::{Ended, ended, until};

const ALWAYS: usize = usize::MAX;

/// Refused at once, however long it would wait, in one line with a hint and without a secret.
fn is_refused(ended: &Ended, why: &str) {
    assert!(
        ended.code == 1 && ended.stderr.contains(why) && ended.stderr.contains(" (hint: "),
        "{why}: {ended:?}"
    );
    assert!(ended.stderr.lines().count() == 1 && !ended.stderr.contains("hunter2"), "{ended:?}");
    assert!(!ended.stderr.contains("whether it was changed"), "{ended:?}");
}

/// S3 and DynamoDB, which refuse the access keys `AKIAVARIABLE` and `AKIAPROFILE` in different
/// ways; a role of the machine may do all.
struct Aws {
    store: Store,
    /// Held for as long as the store is used.
    _server: Injector,
    machine: Injector,
}

impl Aws {
    fn both() -> [Self; 2] {
        let (bucket, table) = (
            Injector::before(shared_s3().address()),
            Injector::before(shared_dynalite().address()),
        );
        for (key, code) in [("AKIAVARIABLE", "InvalidAccessKeyId"), ("AKIAPROFILE", "ExpiredToken")]
        {
            let marker = format!("Credential={key}/");
            bucket.refuse(&marker, ALWAYS, &error("400 Bad Request", "", code, "No."));
            table.refuse(&marker, ALWAYS, &dynamodb_error(400, code, "No."));
        }
        let s3 = format!("s3://{BUCKET}/p?region=us-east-1&endpoint=http://{}", bucket.address());
        let dynamodb = format!(
            "dynamodb://serializer-locks?region=eu-west-1&endpoint=http://{}",
            table.address()
        );
        [(s3, bucket), (dynamodb, table)].map(|(url, server)| {
            let machine = Injector::before(shared_s3().address());
            let text = |text: &str, headers: &str| {
                format!("HTTP/1.1 200 OK\r\n{headers}Content-Length: {}\r\nConnection: \
                         close\r\n\r\n{text}", text.len())
            };
            let lasting = "X-Aws-Ec2-Metadata-Token-Ttl-Seconds: 21600\r\n";
            let role = r#"{"Code":"Success","AccessKeyId":"ASIAROLE","SecretAccessKey":"hunter2","Token":"x",
                "LastUpdated":"2026-01-01T00:00:00Z","Expiration":"2100-01-01T00:00:00Z"}"#;
            machine.refuse("PUT /latest/api/token", ALWAYS, &text("token", lasting));
            machine.refuse("GET \
                            /latest/meta-data/iam/security-credentials/etl", ALWAYS, &text(role, ""));
            machine.refuse("GET /latest/meta-data/iam/security-credentials/ \
                            ", ALWAYS, &text("etl", ""));
            let store = Store::at(&url);
            let dir = store.locks.dir().join(".aws");
            std::fs::create_dir(&dir).expect("a directory");
            let keys = "aws_access_key_id = AKIAPROFILE\naws_secret_access_key = hunter2\n";
            std::fs::write(dir.join("credentials"), format!("[etl]\n{keys}")).expect("a file");
            Self { store, _server: server, machine }
        })
    }

    fn run(&self, url: &str, variables: &[(&str, &str)]) -> Ended {
        let store = self.store.through(url);
        let mut command = store.serializer(&["run", "true"]);
        command
            .env("AWS_EC2_METADATA_SERVICE_ENDPOINT", format!("http://{}", self.machine.address()));
        ended(command.env("HOME", self.store.locks.dir()).envs(variables.iter().copied()))
    }

    fn is_machine_asked(&self) -> bool {
        !self.machine.take_asked().is_empty()
    }
}

const KEYS: [(&str, &str); 2] =
    [("AWS_ACCESS_KEY_ID", "AKIAVARIABLE"), ("AWS_SECRET_ACCESS_KEY", "hunter2")];

#[test]
fn identities_are_found_in_the_order_of_the_aws_cli() {
    for aws in Aws::both() {
        let url = &aws.store.url;
        let (variable, profile) =
            ("the credentials are not accepted", "the credentials have expired");
        is_refused(&aws.run(url, &KEYS), variable);
        is_refused(&aws.run(url, &[KEYS[0], KEYS[1], ("AWS_PROFILE", "etl")]), variable);
        is_refused(&aws.run(url, &[("AWS_PROFILE", "etl")]), profile);
        is_refused(
            &aws.run(url, &[("AWS_PROFILE", "etl"), ("AWS_DEFAULT_PROFILE", "etl")]),
            profile,
        );
        // What the address says counts before the variables.
        is_refused(&aws.run(&format!("{url}&profile=etl"), &KEYS), profile);
        assert!(!aws.is_machine_asked());
        let role = aws.run(url, &[]);
        assert!(role.code == 0 && aws.is_machine_asked(), "{role:?}");
    }
}

#[test]
fn a_role_is_not_used_where_the_settings_name_another_identity() {
    for aws in Aws::both() {
        let url = &aws.store.url;
        for (variables, why) in [
            (&[("AWS_PROFILE", "nope")][..], "the profile `nope` does not exist"),
            (&[("AWS_DEFAULT_PROFILE", "etl")], "`AWS_DEFAULT_PROFILE` names another profile"),
            (
                &[("AWS_DEFAULT_PROFILE", "etl"), ("AWS_PROFILE", "other")],
                "`AWS_DEFAULT_PROFILE` names another profile",
            ),
            (&KEYS[..1], "only one is set"),
            (&KEYS[1..], "only one is set"),
        ] {
            is_refused(&aws.run(url, variables), why);
            assert!(!aws.is_machine_asked(), "{variables:?}");
        }
        is_refused(
            &aws.run(&format!("{url}&profile=nope"), &[]),
            "the profile `nope` does not exist",
        );
        assert!(!aws.is_machine_asked());
    }
}

#[test]
fn region_and_endpoint_are_those_of_the_profile() {
    for aws in Aws::both() {
        let (place, options) = aws.store.url.split_once('?').expect("options");
        let endpoint = options.split_once("endpoint=").expect("an endpoint").1;
        let region = if place.starts_with("s3:") { "us-east-1" } else { "eu-west-1" };
        let service = if place.starts_with("s3:") { "s3" } else { "dynamodb" };
        let keys = "aws_access_key_id = AKIA\naws_secret_access_key = hunter2\n";
        let profile = format!(
            "[profile own]\n{keys}region = {region}\nservices = local\nendpoint_url = \
             http://127.0.0.1:1\n"
        );
        let text = format!("{profile}[services local]\n{service} =\n  endpoint_url = {endpoint}\n");
        std::fs::write(aws.store.locks.dir().join(".aws/config"), text).expect("a file");
        let ran = aws.run(place, &[("AWS_PROFILE", "own")]);
        assert_eq!(ran.code, 0, "{place}: {ran:?}");
    }
}

#[test]
fn credentials_that_cannot_be_fetched_are_not_waited_for() {
    for aws in Aws::both() {
        let agent = ("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://127.0.0.1:1/");
        is_refused(&aws.run(&aws.store.url, &[agent]), "cannot get credentials for AWS");
    }
    let google = Store::at("gs://b");
    let mut command = google.serializer(&["run", "true"]);
    for name in ["GCE_METADATA_HOST", "GCE_METADATA_IP", "GCE_METADATA_ROOT"] {
        command.env(name, "127.0.0.1:1");
    }
    is_refused(&ended(&mut command), "no credentials found");
    let azure = Store::at("azure://c?account=a");
    let machine =
        ended(azure.serializer(&["run", "true"]).env("MSI_ENDPOINT", "http://127.0.0.1:1/"));
    is_refused(&machine, "no credentials found");
    let body = r#"{"error":"invalid_grant","error_description":"Bad"}"#;
    let answer = format!(
        "HTTP/1.1 400 Bad Request\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    let agent = Injector::before(shared_s3().address());
    agent.refuse("GET ", ALWAYS, &answer);
    let machine = ended(
        azure
            .serializer(&["run", "true"])
            .env("MSI_ENDPOINT", format!("http://{}/", agent.address())),
    );
    is_refused(&machine, "bad (status 400)");
}

#[test]
fn a_wrong_key_of_azure_is_not_told_as_a_missing_role() {
    let endpoint = format!("http://{}/{ACCOUNT}", shared_azure().address());
    let other = Store::at(&format!(
        "azure://{BUCKET}/p?account={ACCOUNT}&account_key=aHVudGVyMg==&endpoint={endpoint}"
    ));
    let refused = other.run(&["run", "true"]);
    is_refused(&refused, "the credentials are not accepted");
    assert!(!refused.stderr.contains("Storage Blob Data Contributor"), "{refused:?}");
}

/// A server that only greets, with a certificate of this kind; ends with the test.
struct Greeter(Child);

impl Drop for Greeter {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn greeter(dir: &Path, port: u16, options: &[&str]) -> Greeter {
    let openssl = |arguments: &[&str]| {
        let made =
            Command::new("openssl").args(arguments).current_dir(dir).stderr(Stdio::null()).status();
        assert!(made.expect("openssl runs").success(), "{arguments:?}");
    };
    let request = ["req", "-x509", "-nodes", "-days", "2", "-keyout", "key.pem", "-out", "ca.pem"];
    openssl(&[&request[..], options].concat());
    let accept = format!("127.0.0.1:{port}");
    let serve = ["s_server", "-accept", &accept, "-cert", "ca.pem", "-key", "key.pem", "-quiet"];
    let mut command = Command::new("openssl");
    command
        .args(serve)
        .current_dir(dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let greeter = Greeter(command.spawn().expect("openssl runs"));
    until("it does not listen", || TcpStream::connect(("127.0.0.1", port)).is_ok());
    greeter
}

#[test]
fn a_certificate_that_is_not_accepted_is_told_with_what_is_wrong_with_it() {
    let keys = "access_key_id=a&secret_access_key=hunter2&region=us-east-1";
    let san = ["-subj", "/CN=x", "-addext", "subjectAltName=IP:127.0.0.1"];
    let p521 = [&["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:secp521r1"][..], &san].concat();
    let own = ["-addext", "basicConstraints=critical,CA:FALSE"];
    let usual = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"];
    for (options, why) in [
        (p521, "P-521 cannot"),
        ([&usual[..], &own, &["-subj", "/CN=127.0.0.1"]].concat(), "it has no `subjectAltName`"),
        ([&usual[..], &san].concat(), "it is one of an authority"),
    ] {
        let store = Store::at("s3://b");
        let port = Port::reserve();
        let number = port.number();
        let _greeter = greeter(store.locks.dir(), number, &options);
        let url = format!(
            "s3://b?{keys}&endpoint=https://127.0.0.1:{number}&ca={}/ca.pem",
            store.locks.dir().display()
        );
        let told = store.through(&url).run(&["run", "true"]);
        assert!(
            told.code == 1 && told.stderr.contains(why) && !told.stderr.contains("hunter2"),
            "{why}: {told:?}"
        );
    }
    let store = Store::at("s3://b");
    for (text, why) in [("hunter2", "no certificate found in"), ("", "no certificate found in")] {
        std::fs::write(store.locks.dir().join("ca.pem"), text).expect("a file");
        for url in [
            format!(
                "s3://b?{keys}&endpoint=https://127.0.0.1:1&ca={}/ca.pem",
                store.locks.dir().display()
            ),
            format!(
                "azure://c?account=a&account_key=aaaa&ca={}/ca.pem",
                store.locks.dir().display()
            ),
        ] {
            let told = store.through(&url).run(&["run", "true"]);
            assert!(
                told.code == 1 && told.stderr.contains(why) && !told.stderr.contains("hunter2"),
                "{why}: {told:?}"
            );
        }
    }
}

#[test]
fn requests_take_the_way_through_the_proxy_of_the_environment() {
    let proxy = Injector::before(shared_s3().address());
    proxy.refuse(
        "GET http://store.invalid:9/",
        ALWAYS,
        &error("403 Forbidden", "", "AccessDenied", "No."),
    );
    proxy.refuse(
        "POST http://store.invalid:9/",
        ALWAYS,
        &dynamodb_error(400, "AccessDeniedException", "No."),
    );
    for (url, why) in [
        ("s3://b?region=us-east-1&access_key_id=a&secret_access_key=hunter2", "may not read"),
        ("dynamodb://a:hunter2@locks?region=eu-west-1", "no permission"),
    ] {
        let store = Store::at(&format!("{url}&endpoint=http://store.invalid:9"));
        let through = |excluded: &str| {
            let mut command = store.serializer(&["run", "true"]);
            command
                .env("HTTP_PROXY", format!("http://{}", proxy.address()))
                .env("NO_PROXY", excluded);
            ended(&mut command)
        };
        is_refused(&through("example.org"), why);
        is_refused(&through("store.invalid"), "lookup address information");
    }
}

#[test]
fn each_write_to_a_bucket_asks_for_encryption_at_rest_where_the_environment_does() {
    let injector = Injector::before(shared_s3().address());
    let store = Store::at(&crate::support::servers::buckets::s3_url_at(injector.address()));
    let run =
        || ended(store.serializer(&["run", "true"]).env("AWS_SERVER_SIDE_ENCRYPTION", "aws:kms"));
    let denied = error("403 Forbidden", "", "AccessDenied", "No.");
    let header = "x-amz-server-side-encryption: aws:kms";
    injector.refuse(header, 1, &denied);
    is_refused(&run(), "may not write");
    assert!(injector.is_through());
    assert_eq!(store.run(&["run", "true"]).code, 0);
    injector.refuse(header, 1, &denied);
    is_refused(&run(), "may not write");
    assert!(injector.is_through());
    assert_eq!(run().code, 0);
}

/// Google, with an address that is answered by the injector, and no right there.
fn google(injector: &Injector) -> String {
    injector.refuse("GET ", ALWAYS, &error("403 Forbidden", "", "AccessDenied", "Access Denied"));
    let keys = r#""private_key":"","private_key_id":"","client_email":"","disable_oauth":true"#;
    format!(r#"{{{keys},"gcs_base_url":"http://{}"}}"#, injector.address())
}

#[test]
fn no_variable_replaces_the_bucket_of_the_address() {
    let (s3, azure) = (s3_url_at(shared_s3().address()), shared_azure().url());
    for (url, name) in
        [(&s3, "AWS_BUCKET"), (&s3, "AWS_BUCKET_NAME"), (&azure, "AZURE_CONTAINER_NAME")]
    {
        let store = Store::at(url);
        let ran = ended(store.serializer(&["run", "true"]).env(name, "nowhere"));
        assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "{name}");
    }
    let injector = Injector::before(shared_s3().address());
    let store = Store::at("gs://b/p");
    let mut command = store.serializer(&["status"]);
    command.env("GOOGLE_SERVICE_ACCOUNT_KEY", google(&injector)).env("GOOGLE_BUCKET", "nowhere");
    is_refused(&ended(command.env("GOOGLE_BUCKET_NAME", "nowhere")), "may not read in `b`");
    let asked = injector.take_asked();
    assert!(asked.len() == 1 && asked[0].starts_with("GET /b/"), "{asked:?}");
}

#[test]
fn meltano_s_settings_come_before_the_login_of_its_address_and_are_not_mixed_with_it() {
    let injector = Injector::before(shared_s3().address());
    for key in ["AKIAMELTANO", "AKIALOGIN"] {
        injector.refuse(
            &format!("Credential={key}/"),
            ALWAYS,
            &error("400 Bad Request", "", "InvalidAccessKeyId", key),
        );
    }
    let settings = [
        ("MELTANO_STATE_BACKEND_S3_ENDPOINT_URL", format!("http://{}", injector.address())),
        ("MELTANO_STATE_BACKEND_S3_AWS_ACCESS_KEY_ID", "AKIAMELTANO\n".to_owned()),
        ("MELTANO_STATE_BACKEND_S3_AWS_SECRET_ACCESS_KEY", "hunter2\n".to_owned()),
    ];
    let login = Store::at(&format!("s3://AKIALOGIN:hunter2@{BUCKET}/p?region=us-east-1"));
    let own =
        login.through(&format!("{}&access_key_id=AKIAOWN&secret_access_key=hunter2", login.url));
    let run = |store: &Store, count: usize| {
        let settings = settings[..count].iter().map(|(name, value)| (name, value));
        ended(store.serializer(&["run", "true"]).envs(settings))
    };
    is_refused(&run(&login, 1), "AKIALOGIN (InvalidAccessKeyId)");
    is_refused(&run(&login, 3), "AKIAMELTANO (InvalidAccessKeyId)");
    assert_eq!(run(&own, 3).code, 0);
    let mixed = run(&login, 2);
    assert!(mixed.code == 2 && mixed.stderr.contains("only one is given"), "{mixed:?}");
}

#[test]
fn meltano_s_settings_for_google_are_a_path_or_its_content_and_not_both() {
    let injector = Injector::before(shared_s3().address());
    let json = google(&injector);
    let store = Store::at("gs://b/p");
    let file = store.locks.dir().join("account.json");
    std::fs::write(&file, &json).expect("a file");
    let file = file.to_str().expect("UTF-8");
    let [path, old, text] = ["_PATH", "", "_JSON"]
        .map(|end| format!("MELTANO_STATE_BACKEND_GCS_APPLICATION_CREDENTIALS{end}"));
    let status = |store: &Store, variables: &[(&str, &str)]| {
        ended(store.serializer(&["status"]).envs(variables.iter().copied()))
    };
    let other = ("GOOGLE_SERVICE_ACCOUNT", "/nonexistent");
    is_refused(&status(&store, &[(&text, &json), other]), "may not read in `b`");
    // A path is not one of a service account that says where the store is.
    let own = store.through(&format!(
        "gs://b/p?endpoint=http://{}&application_credentials={file}",
        injector.address()
    ));
    for (store, variables) in [
        (own, vec![(path.as_str(), "/nonexistent"), other]),
        (
            store.through(&format!("gs://b/p?endpoint=http://{}", injector.address())),
            vec![(path.as_str(), file), (&old, "/no"), other],
        ),
        (
            store.through(&format!("gs://b/p?endpoint=http://{}", injector.address())),
            vec![(old.as_str(), file), other],
        ),
    ] {
        // It has no key to sign with.
        let told = status(&store, &variables);
        assert!(
            told.code == 2 && !told.stderr.contains("nonexistent") && !told.stderr.contains("/no"),
            "{told:?}"
        );
    }
    for (variables, why) in [
        ([(path.as_str(), file), (&text, json.as_str())], "have both a path"),
        ([(text.as_str(), "\"hunter2\""), other], "is not a JSON object"),
        ([(text.as_str(), "{hunter2}"), other], "is not a JSON object"),
    ] {
        let told = status(&store, &variables);
        assert!(
            told.code == 2 && told.stderr.contains(why) && !told.stderr.contains("hunter2"),
            "{told:?}"
        );
    }
}
