//! What is particular to object stores: conditions that have to be kept to, answers of their own,
//! rights, and what all of it costs.

use crate::support::faults::until_renewed;
use crate::support::injector::{Injector, error};
use crate::support::servers::buckets::{
    ACCOUNT, Azurite, BUCKET, asked, asked_as_administrator, make_bucket, s3_url_at, shared_azure,
    shared_s3, start_s3_with_tls,
};
use crate::support::servers::emulators::Moto;
use crate::support::stores::Store;
use crate::support::{self, Ended, ended, faults, servers};

/// Answers instead of S3, or passes on what it is asked.
fn injected() -> (Injector, Store) {
    let injector = Injector::before(shared_s3().address());
    let store = Store::at(&s3_url_at(injector.address()));
    (injector, store)
}

fn is_refused(ended: &Ended, why: &str, hint: &str) {
    assert!(ended.code == 1 && ended.stderr.contains(why), "{why}: {ended:?}");
    let (_, hinted) =
        ended.stderr.split_once(" (hint: ").unwrap_or_else(|| panic!("no hint: {ended:?}"));
    assert!(hinted.contains(hint) && ended.stderr.lines().count() == 1, "{hint}: {ended:?}");
    assert!(!ended.stderr.contains("hunter") && !ended.stderr.contains("x+y"), "{ended:?}");
}

/// As [`is_refused`], before anything is asked.
fn is_unusable(ended: Ended, why: &str, hint: &str) {
    assert_eq!(ended.code, 2, "{ended:?}");
    is_refused(&Ended { code: 1, ..ended }, why, hint);
}

const ALWAYS: usize = usize::MAX;

#[test]
fn a_setting_that_a_library_does_not_expect_is_answered_in_one_line_before_the_command_begins() {
    let store = Store::at("gs://b/p");
    for json in ["0", "1"] {
        let mut run = store.serializer(&["run", "touch", "ran"]);
        let ended = ended(
            run.env("GCE_METADATA_HOST", "")
                .env("HOME", "/nonexistent")
                .env("MELTANO_LOG_JSON", json),
        );
        assert!(
            ended.code == 1
                && ended.stderr.lines().count() == 1
                && ended.stderr.contains("(hint: "),
            "{ended:?}"
        );
        assert!(
            !ended.stderr.contains("panicked") && !ended.stderr.contains(".cargo"),
            "{ended:?}"
        );
        assert_eq!(ended.stderr.starts_with('{'), json == "1", "{ended:?}");
        assert!(!store.locks.dir().join("ran").exists());
    }
}

#[test]
fn what_a_store_refuses_for_good_is_said_at_once_with_what_to_do() {
    let region = "x-amz-bucket-region: eu-central-1\r\n";
    for (status, headers, code, message, why, hint) in [
        (
            "403 Forbidden",
            "",
            "AccessDenied",
            "Access Denied",
            "may not read in `locks`",
            "s3:GetObject",
        ),
        (
            "403 Forbidden",
            "",
            "InvalidAccessKeyId",
            "It does not exist.",
            "credentials are not accepted",
            "AWS_ACCESS_KEY_ID",
        ),
        (
            "403 Forbidden",
            "",
            "SignatureDoesNotMatch",
            "It differs.",
            "credentials are not accepted",
            "AWS_ACCESS_KEY_ID",
        ),
        ("403 Forbidden", "", "RequestTimeTooSkewed", "Too large.", "too large", "clock"),
        (
            "400 Bad Request",
            "",
            "ExpiredToken",
            "The provided token has expired.",
            "credentials have expired",
            "AWS_SESSION_TOKEN",
        ),
        (
            "404 Not Found",
            "",
            "NoSuchBucket",
            "It is not there.",
            "the bucket `locks` does not exist",
            "create it",
        ),
        (
            "301 Moved Permanently",
            region,
            "PermanentRedirect",
            "Elsewhere.",
            "in the region `eu-central-1`",
            "region=eu-central-1",
        ),
        (
            "400 Bad Request",
            region,
            "AuthorizationHeaderMalformed",
            "Wrong.",
            "in the region `eu-central-1`",
            "AWS_REGION",
        ),
        (
            "301 Moved Permanently",
            "",
            "PermanentRedirect",
            "Elsewhere.",
            "the server is elsewhere",
            "endpoint=",
        ),
        (
            "501 Not Implemented",
            "",
            "NotImplemented",
            "A header is not.",
            "a header is not (NotImplemented)",
            "conditional writes",
        ),
    ] {
        let (injector, store) = injected();
        injector.refuse(" /locks/", ALWAYS, &error(status, headers, code, message));
        for args in [&["lock"][..], &["run", "true"], &["status"], &["wait"]] {
            is_refused(&store.run(args), why, hint);
        }
    }
}

#[test]
fn whatever_a_server_answers_is_said_in_one_line() {
    for (answer, why) in [
        (
            error("403 Forbidden", "x-amz-bucket-region: a b\r\n", "a\nb", "x\u{1b}[1m\ny"),
            "x [1m (status 403)",
        ),
        (
            error("301 Moved Permanently", "", "PermanentRedirect", "Be &quot;there&quot;."),
            "be \"there\" (PermanentRedirect)",
        ),
        (
            "HTTP/1.1 413 Too Large\r\nContent-Length: 13\r\nConnection: close\r\n\r\n<html></html>"
                .to_owned(),
            "answers with status 413",
        ),
    ] {
        let (injector, store) = injected();
        injector.refuse(" /locks/", ALWAYS, &answer);
        is_refused(&store.run(&["lock"]), why, "endpoint=");
    }
}

#[test]
fn a_write_or_a_list_that_is_refused_names_the_right_that_is_missing() {
    let (injector, store) = injected();
    let denied = error("403 Forbidden", "", "AccessDenied", "Access Denied");
    injector.refuse("PUT ", ALWAYS, &denied);
    is_refused(&store.run(&["lock"]), "may not write in `locks`", "s3:PutObject");
    assert_eq!(store.state(), "free");
    injector.refuse("?", ALWAYS, &denied);
    is_refused(&store.run(&["status", "--all"]), "may not list in `locks`", "s3:ListBucket");
}

#[test]
fn what_passes_is_tried_again_and_never_taken_for_a_lock_that_is_held() {
    for (status, code) in [
        ("503 Slow Down", "SlowDown"),
        ("500 Internal Server Error", "InternalError"),
        ("429 Too Many Requests", "TooManyRequests"),
        ("400 Bad Request", "RequestTimeout"),
        ("409 Conflict", "ConditionalRequestConflict"),
    ] {
        for marker in ["GET ", "if-none-match", "if-match"] {
            if marker == "GET " && status.starts_with("409") {
                continue;
            }
            let (injector, store) = injected();
            injector.refuse(marker, 2, &error(status, "", code, "Again, please."));
            let ended = store.run(&["run", "-n", "echo", "ran"]);
            assert_eq!(
                (ended.code, ended.stdout.as_str(), ended.stderr.as_str()),
                (0, "ran\n", ""),
                "{code} {marker}"
            );
            assert!(injector.is_through());
            assert_eq!(store.state(), "free");
        }
    }
}

#[test]
fn a_process_that_waits_for_a_store_that_has_too_much_to_do_says_so_and_gets_the_lock_in_the_end() {
    let (injector, store) = injected();
    injector.refuse(
        "GET ",
        12,
        &error("503 Slow Down", "", "SlowDown", "Please reduce your request rate."),
    );
    let waiter = faults::Logged::start(&store, &["run", "true"]);
    waiter.until_said("the store has too much to do: please reduce your request rate (SlowDown)");
    assert_eq!(waiter.end().0, 0);
}

#[test]
fn a_write_that_was_done_although_the_store_says_that_it_has_failed_was_done_once() {
    for status in ["500 Internal Server Error", "503 Service Unavailable", "502 Bad Gateway"] {
        for (before, marker) in [(false, "if-none-match"), (true, "if-match")] {
            let (injector, store) = injected();
            if before {
                assert_eq!(store.run(&["run", "true"]).code, 0);
            }
            injector.misreport(
                marker,
                1,
                &error(status, "", "InternalError", "We encountered an internal error."),
            );
            let ended = store.run(&["run", "-n", "echo", "ran"]);
            assert_eq!(
                (ended.code, ended.stdout.as_str(), ended.stderr.as_str()),
                (0, "ran\n", ""),
                "{status} {marker}"
            );
            assert!(injector.is_through());
            assert_eq!(store.state(), "free");
        }
    }
}

#[test]
fn a_store_that_ignores_conditions_is_found_out_before_anything_is_locked() {
    let both: &[&'static str] = &["if-none-match", "if-match"];
    for (ignored, named) in [
        (both, "If-None-Match"),
        (&["if-none-match"], "If-None-Match"),
        (&["if-match"], "If-Match`"),
    ] {
        let (injector, store) = injected();
        injector.ignore(ignored);
        // The second time, there is an object already.
        for _ in 0..2 {
            for args in [&["lock"][..], &["run", "touch", "ran"]] {
                is_refused(
                    &store.run(args),
                    &format!("the store ignores the condition `{named}"),
                    "conditional writes",
                );
            }
        }
        assert!(!store.locks.dir().join("ran").exists());
        // What was tried out before may have changed since, as when another endpoint is given.
        injector.ignore(&[]);
        assert_eq!(store.run(&["initialize"]).code, 0);
        injector.ignore(ignored);
        is_refused(&store.run(&["initialize"]), "ignores the condition", "conditional writes");
        injector.ignore(&[]);
        assert_eq!(store.run(&["run", "true"]).code, 0);
    }
}

#[test]
fn what_another_program_has_stored_is_neither_taken_for_a_lock_nor_overwritten() {
    let store = Store::at(&s3_url_at(shared_s3().address()));
    let path = format!("/{BUCKET}/meltano/state/{}.lock", store.name);
    for text in [
        "",
        "{\"completed\": {}}",
        "serializer-lock x\n\n",
        "serializer-lock 1\nnumber=1\nstate=held\n",
        "serializer-lock 1\nnumber=-1\nstate=free\n\n",
        "serializer-lock 1\nnumber=1\nstate=odd\n\n",
        "serializer-lock 2\nof another time\n",
    ] {
        let put = asked(shared_s3().address(), "PUT", &path, text);
        assert!(put.contains("200 OK"), "{put}");
        for args in [&["lock"][..], &["run", "true"], &["status"], &["unlock", "--force"]] {
            let is_newer = text.starts_with("serializer-lock 2");
            let why = if is_newer { "a newer version" } else { "not a lock record" };
            is_refused(
                &store.run(args),
                why,
                if is_newer { "use that version" } else { "another prefix" },
            );
        }
        assert!(asked(shared_s3().address(), "GET", &path, "").ends_with(text));
    }
}

/// Costs, which docs/stores.md tells.
#[test]
fn so_many_requests_are_needed_and_nothing_is_ever_deleted() {
    let (injector, store) = injected();
    let count = || {
        let asked = injector.take_asked();
        assert!(
            asked.iter().all(|line| line.starts_with("GET ") || line.starts_with("PUT ")),
            "{asked:?}"
        );
        let puts = asked.iter().filter(|line| line.starts_with("PUT ")).count();
        (asked.len() - puts, puts)
    };
    let mut owner = store.shell();
    owner.lock();
    assert_eq!(count(), (3, 5), "the first time");
    owner.unlock();
    assert_eq!(count(), (1, 1), "unlock");
    owner.lock();
    assert_eq!(count(), (1, 1), "lock");
    owner.unlock();
    count();
    assert_eq!(store.run(&["run", "true"]).code, 0);
    assert_eq!(count(), (2, 2), "run");
    assert_eq!(store.run(&["status"]).code, 0);
    assert_eq!(count(), (1, 0), "status");
    // Long enough for each answer to come in time.
    let renewed = Store { lease: "12".to_owned(), ..store.through(&store.url) };
    let mut owner = renewed.shell();
    owner.lock();
    count();
    // Looked at by another way, which is not counted.
    let aside = renewed.through(&s3_url_at(shared_s3().address()));
    until_renewed(&aside);
    let (gets, puts) = count();
    assert!(
        puts >= 1 && gets == puts || gets == puts + 1,
        "a renewal is a look and a write: {gets} {puts}"
    );
    owner.unlock();
}

#[test]
fn a_process_that_waits_looks_no_more_often_because_the_holder_renews_its_lease() {
    let (injector, through) = injected();
    let held =
        Store { lease: "6".to_owned(), ..through.through(&s3_url_at(shared_s3().address())) };
    let mut owner = held.shell();
    owner.lock();
    let waiter = faults::Logged::start(&through, &["run", "true"]);
    let until_renewed = |times: u64| {
        let before = faults::renewals(&held);
        support::until("it is not renewed", || faults::renewals(&held) >= before + times);
    };
    // There are two seconds between two renewals (four and a half at most), and in the end one
    // between two looks.
    until_renewed(5);
    injector.take_asked();
    until_renewed(3);
    let looks = injector.take_asked().len();
    assert!((1..=18).contains(&looks), "{looks} looks during three renewals");
    owner.unlock();
    assert_eq!(waiter.end().0, 0);
}

#[test]
fn all_locks_are_listed_however_many_objects_are_there() {
    let moto = servers::buckets::start_s3();
    let store = Store::at(&s3_url_at(moto.address()));
    let mut owner = store.shell();
    // A list has a thousand at most.
    for number in 0..1001 {
        let put =
            asked(moto.address(), "PUT", &format!("/{BUCKET}/meltano/state/!{number}.json"), "{}");
        assert!(put.contains("200 OK"), "{put}");
    }
    for other in [
        "/locks/meltano/state/deeper/x.lock",
        "/locks/meltano/x.lock",
        "/locks/meltano/state/y.lock",
    ] {
        asked(moto.address(), "PUT", other, "{}");
    }
    // Not as this program spells any name.
    for name in [
        "a",
        "a.lock.bak",
        "a%20b.lock",
        "~.lock",
        "~2.lock",
        "~2f.lock",
        "~41.lock",
        "~zz.lock",
        "~FF.lock",
    ] {
        let held = "serializer-lock 1\nnumber=1\nnonce=1\nstate=held\n\nx";
        asked(moto.address(), "PUT", &format!("/{BUCKET}/meltano/state/{name}"), held);
    }
    owner.lock();
    assert_eq!(owner.run(r#""$S" lock --file-name 'ä/../b' 2> /dev/null"#), 0);
    assert_eq!(owner.run(r#""$S" lock --file-name released 2> /dev/null && "$S" unlock --file-name released 2> /dev/null"#), 0);
    let listed = store.run(&["status", "--all", "--json"]);
    let report: serde_json::Value = serde_json::from_str(&listed.stdout).expect("JSON");
    let locks: Vec<_> = report["locks"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|lock| lock["name"].to_string())
        .collect();
    assert!(locks.len() == 2 && locks.iter().any(|lock| lock.contains("ä/../b")), "{locks:?}");
    owner.unlock();
}

/// The policy for S3, as docs/stores.md has it.
fn documented_policy() -> String {
    let text = include_str!("../../docs/stores.md");
    let (_, section) = text.split_once("\n## S3").expect("its section");
    let (_, rest) = section.split_once("```json\n").expect("a policy");
    rest.split_once("```").expect("its end").0.replace("my-bucket", BUCKET)
}

fn element<'a>(text: &'a str, name: &str) -> &'a str {
    let (_, rest) = text.split_once(&format!("<{name}>")).unwrap_or_else(|| panic!("{text}"));
    rest.split_once(&format!("</{name}>")).expect("its end").0
}

/// A user with the permissions of the policy; no other user has any.
fn with_policy(moto: &Moto, policy: &str) -> Store {
    make_bucket(moto.address(), BUCKET);
    let ask = |action: &str, rest: &str| {
        let body = format!("Action={action}&Version=2010-05-08&UserName=etl{rest}");
        let answer = asked_as_administrator(moto.address(), "iam", "/", &body);
        assert!(answer.contains("200 OK"), "{answer}");
        answer
    };
    let encoded: String = policy.bytes().map(|byte| format!("%{byte:02X}")).collect();
    ask("CreateUser", "");
    ask("PutUserPolicy", &format!("&PolicyName=locks&PolicyDocument={encoded}"));
    let key = ask("CreateAccessKey", "");
    let (id, secret) = (element(&key, "AccessKeyId"), element(&key, "SecretAccessKey"));
    asked(moto.address(), "POST", "/moto-api/reset-auth", "0");
    Store::at(&format!(
        "s3://{id}:{secret}@{BUCKET}/meltano/state?region=us-east-1&endpoint=http://{}",
        moto.address()
    ))
}

#[test]
fn the_documented_policy_suffices_and_without_one_of_its_actions_the_refusal_says_which() {
    let moto = Moto::start();
    let store = with_policy(&moto, &documented_policy());
    let mut owner = store.shell();
    owner.lock();
    assert_eq!(store.run(&["lock", "-n"]).code, 75);
    assert_eq!(store.run(&["status", "--all"]).code, 0);
    owner.unlock();
    assert_eq!(store.run(&["initialize"]).code, 0);
    assert_eq!(store.run(&["run", "true"]).code, 0);
    let elsewhere = store.through(&store.url.replace("meltano/state", "other"));
    is_refused(&elsewhere.run(&["lock"]), "may not", "s3:GetObject");

    for (action, args, why) in [
        ("s3:GetObject", &["lock"][..], "may not read"),
        ("s3:PutObject", &["lock"], "may not write"),
        ("s3:ListBucket", &["status", "--all"], "may not list"),
    ] {
        let moto = Moto::start();
        let store = with_policy(&moto, &documented_policy().replace(action, "s3:GetObjectTagging"));
        is_refused(&store.run(args), why, action);
    }
}

#[test]
fn a_shared_access_signature_with_the_documented_letters_suffices_and_with_fewer_does_not() {
    let azure: &Azurite = shared_azure();
    let with = |letters: &str| {
        let signature = azure.signature(letters).replace('%', "%25").replace('&', "%26");
        let endpoint = format!("http://{}/{ACCOUNT}", azure.address());
        Store::at(&format!(
            "azure://{BUCKET}/meltano/state?account={ACCOUNT}&sas_token={signature}&endpoint={endpoint}"
        ))
    };
    let store = with("rcwl");
    let place = format!("http://{}/{ACCOUNT}/", azure.address());
    let string = format!("BlobEndpoint={place};SharedAccessSignature={}", azure.signature("rcwl"));
    let named = Store::at(&format!("azure://{BUCKET}/meltano/state"));
    let ran =
        ended(named.serializer(&["run", "true"]).env("AZURE_STORAGE_CONNECTION_STRING", &string));
    assert_eq!(ran.code, 0, "{ran:?}");
    let mut owner = store.shell();
    owner.lock();
    assert_eq!(store.run(&["status", "--all"]).code, 0);
    owner.unlock();
    assert_eq!(store.run(&["initialize"]).code, 0);
    is_refused(
        &with("rl").run(&["lock"]),
        "may not write in `locks`",
        "Storage Blob Data Contributor",
    );
    is_refused(&with("cwl").run(&["lock"]), "may not read in `locks`", "sp=rcwl");
    is_refused(&with("rcw").run(&["status", "--all"]), "may not list in `locks`", "sp=rcwl");
    let forged = store.through(&store.url.replace("sig%3D", "sig=").replace("sig=", "sig=AA"));
    let ended = forged.run(&["lock"]);
    is_refused(&ended, "credentials are not accepted", "AZURE_STORAGE_CONNECTION_STRING");
    assert!(!ended.stderr.contains("sig="), "{ended:?}");
}

#[test]
fn a_process_that_has_no_credentials_is_told_where_they_are_looked_for() {
    let address = shared_s3().address();
    let store = Store::at(&format!("s3://{BUCKET}/p?endpoint=http://{address}"));
    let ended = ended(store.serializer(&["lock"]).env("AWS_EC2_METADATA_DISABLED", "true"));
    is_refused(&ended, "no credentials found", "AWS_SECRET_ACCESS_KEY");
    let azure = Store::at(&format!("azure://{BUCKET}/p"));
    is_unusable(azure.run(&["lock"]), "account", "AZURE_STORAGE_CONNECTION_STRING");
    let garbled = azure.through(&format!("{}?account=a&account_key=hunter2!", azure.url));
    is_unusable(garbled.run(&["lock"]), "cannot be used", "AZURE_STORAGE_CONNECTION_STRING");
    for text in ["AccountKey=hunter2", "a=b;hunter2"] {
        let ended = support::ended(
            azure.serializer(&["lock"]).env("AZURE_STORAGE_CONNECTION_STRING", text),
        );
        is_unusable(
            ended,
            "the connection string of the storage account is not valid",
            "AccountName=",
        );
    }
    let mistyped = Store::at("s3://AKIATEST:hunter2@b?regoin=x").run(&["lock"]);
    assert!(
        mistyped.code == 2
            && mistyped.stderr.contains("`regoin`")
            && !mistyped.stderr.contains("hunter2"),
        "{mistyped:?}"
    );
}

/// As its documentation spells them.
#[test]
fn the_addresses_and_settings_of_meltano_s_state_backends_are_taken_as_they_are() {
    let (s3, azure) = (shared_s3().address(), shared_azure());
    let connection = format!(
        "DefaultEndpointsProtocol=http;AccountName={ACCOUNT};AccountKey={};BlobEndpoint=http://{}/{ACCOUNT};",
        servers::buckets::ACCOUNT_KEY,
        azure.address()
    );
    for (url, variable, value, shown) in [
        (
            "s3://AKIATEST:hunter2@locks/state",
            "MELTANO_STATE_BACKEND_S3_ENDPOINT_URL",
            format!("http://{s3}"),
            "s3://locks/state\n",
        ),
        (
            "s3://AKIATEST:hunter2@locks/state",
            "AWS_ENDPOINT_URL",
            format!("http://{s3}"),
            "s3://locks/state\n",
        ),
        (
            "azure://locks/state",
            "MELTANO_STATE_BACKEND_AZURE_CONNECTION_STRING",
            connection.clone(),
            "az://locks/state\n",
        ),
        ("azure://locks", "AZURE_STORAGE_CONNECTION_STRING", connection, "az://locks\n"),
    ] {
        let store = Store::at(url);
        let run = |args: &[&str]| ended(store.serializer(args).env(variable, &value));
        let ran = run(&["run", "--verbose", "true"]);
        assert!(ran.code == 0 && !ran.stderr.contains("hunter2"), "{variable}: {ran:?}");
        let shell = ended(
            store
                .command("bash")
                .env(variable, &value)
                .args(["-c", r#""$S" lock && "$S" status && "$S" unlock"#]),
        );
        assert!(
            shell.code == 0
                && shell.stdout.starts_with(shown)
                && !(shell.stdout + &shell.stderr).contains("hunter2"),
            "{variable}: {shown}"
        );
    }
}

#[test]
fn meltano_s_json_for_google_is_used_and_comes_before_other_credentials() {
    let injector = Injector::before(shared_s3().address());
    let keys = r#""private_key":"","private_key_id":"","client_email":"","disable_oauth":true"#;
    let json = format!(r#"{{{keys},"gcs_base_url":"http://{}"}}"#, injector.address());
    injector.refuse("GET ", ALWAYS, &error("403 Forbidden", "", "AccessDenied", "Access Denied"));
    let store = Store::at("gs://b/p");
    let mut command = store.serializer(&["status"]);
    command
        .env("MELTANO_STATE_BACKEND_GCS_APPLICATION_CREDENTIALS_JSON", json)
        .env("GOOGLE_SERVICE_ACCOUNT", "/nonexistent");
    is_refused(&ended(&mut command), "may not read in `b`", "roles/storage.objectUser");
    assert_eq!(injector.take_asked().len(), 1);
    let odd = format!(r#"{{{keys},"gcs_base_url":"http://a b"}}"#);
    command.env("MELTANO_STATE_BACKEND_GCS_APPLICATION_CREDENTIALS_JSON", odd);
    is_refused(&ended(&mut command), "internal error", "endpoints");
    command.env("GOOGLE_BASE_URL", "http://a b");
    is_unusable(ended(&mut command), "`GOOGLE_BASE_URL` is not the URL of a server", "https://");
}

#[test]
fn a_certificate_has_to_be_signed_by_an_authority_that_is_trusted() {
    let moto = start_s3_with_tls();
    let url = s3_url_at(moto.address()).replace("http://", "https://");
    let trusting = Store::at(&format!("{url}&ca={}", moto.certificate()));
    assert_eq!(trusting.run(&["run", "true"]).code, 0);
    let store = trusting.through(&url);
    is_refused(&store.run(&["lock"]), "certificate", "`?ca=…`");
    let told = ended(store.serializer(&["run", "true"]).env("AWS_CA_BUNDLE", moto.certificate()));
    assert_eq!(told.code, 0, "{told:?}");
}

/// As in EKS, where an agent of the node gives credentials out.
#[test]
fn a_role_s_credentials_are_fetched_and_a_failure_to_is_not_taken_for_one_of_the_store() {
    let agent = Injector::before(shared_s3().address());
    let store = Store::at(&format!(
        "s3://{BUCKET}/p?region=us-east-1&endpoint=http://{}",
        shared_s3().address()
    ));
    let token = store.locks.dir().join("token");
    std::fs::write(&token, "hunter2").expect("it can be written");
    let run = || {
        let mut command = store.serializer(&["run", "-n", "true"]);
        command.env(
            "AWS_CONTAINER_CREDENTIALS_FULL_URI",
            format!("http://{}/v1/credentials", agent.address()),
        );
        ended(command.env("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", &token))
    };
    let body = r#"{"AccessKeyId":"ASIATEST","SecretAccessKey":"hunter2","Token":"hunter3","Expiration":"2100-01-01T00:00:00Z"}"#;
    let given = format!(
        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    agent.refuse("GET /v1/credentials", 1, &given);
    let ran = run();
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""));
    assert_eq!(agent.take_asked().len(), 1, "once for all questions");
    agent.refuse(
        "GET /v1/credentials",
        1,
        &error("403 Forbidden", "", "AccessDenied", "No such role."),
    );
    is_refused(&run(), "cannot get credentials for AWS", "aws sts get-caller-identity");
    // A busy provider is asked again.
    agent.refuse("GET /v1/credentials", 2, &error("503 Service Unavailable", "", "Busy", "Later."));
    agent.refuse("GET /v1/credentials", 1, &given);
    assert_eq!(run().code, 0);
    assert!(agent.is_through());
}

/// What libraries take for granted, and end the program for.
#[test]
fn what_is_no_part_of_an_address_or_of_a_header_is_said_in_one_line() {
    let keys = [("AWS_ACCESS_KEY_ID", "AKIATEST"), ("AWS_SECRET_ACCESS_KEY", "hunter2")];
    let with = |url: &str, more: &[(&str, &str)], why: &str| {
        let store = Store::at(url);
        let mut command = store.serializer(&["run", "true"]);
        command
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .envs(keys.into_iter().filter(|_| more.len() != 2))
            .envs(more.iter().copied());
        // What an address or a variable says is known before anything is tried.
        let ended = ended(&mut command);
        is_refused(&Ended { code: ended.code.min(1), ..ended }, why, "");
    };
    for endpoint in ["http://h:99999", "http://999.1.1.1", "http://xn--a", "http://a b"] {
        with(
            &format!("s3://b?endpoint={endpoint}"),
            &[],
            "the address's `endpoint` is not the URL of a server",
        );
        for name in ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"] {
            with(
                "s3://b",
                &[(name, endpoint)],
                "the endpoint of `AWS_ENDPOINT_URL…` or of the profile is not the URL of a server",
            );
        }
    }
    with(
        "s3://b?endpoint=http://127.0.0.1:1&path_style=false",
        &[],
        "the bucket cannot stand before the name",
    );
    with("s3://xn--a?path_style=false", &[], "the bucket cannot stand before the name");
    with("s3://b?region=xn--a", &[], "the region is not valid");
    with("s3://b", &[("AWS_REGION", "xn--a")], "the region is not valid");
    let store = Store::at("s3://b?endpoint=http://127.0.0.1:1");
    let token = store.locks.dir().join("token");
    std::fs::write(&token, "hunter2\nhunter3\n").expect("it can be written");
    let token = ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", token.to_str().expect("UTF-8"));
    with(
        &store.url,
        &[("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://127.0.0.1:1/"), token],
        "may have a line end",
    );
}

#[test]
fn the_line_end_of_a_mounted_secret_is_cut() {
    let store = Store::at(&format!("s3://{BUCKET}/p?endpoint=http://{}", shared_s3().address()));
    let mut command = store.serializer(&["run", "true"]);
    command
        .env("AWS_ACCESS_KEY_ID", "AKIATEST\n")
        .env("AWS_SECRET_ACCESS_KEY", "hunter2\n")
        .env("AWS_REGION", "us-east-1\n");
    let ran = ended(&mut command);
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""));
}

#[test]
fn a_name_of_a_host_that_is_not_found_is_said_with_what_to_do() {
    let keys = "access_key_id=a&secret_access_key=hunter2";
    is_refused(
        &Store::at(&format!("s3://b?{keys}&endpoint=http://nowhere.invalid")).run(&["status"]),
        "nowhere.invalid",
        "endpoint=",
    );
}

#[test]
fn the_azure_cli_is_not_run_since_it_may_take_any_time() {
    let store = Store::at("azure://c?account=a&endpoint=http://127.0.0.1:1/a");
    let az = store.locks.dir().join("az");
    std::fs::write(&az, "#!/bin/sh\ntouch ran\n").expect("it can be written");
    assert!(
        std::process::Command::new("chmod")
            .arg("755")
            .arg(&az)
            .status()
            .expect("chmod runs")
            .success()
    );
    let path =
        format!("{}:{}", store.locks.dir().display(), std::env::var("PATH").expect("a path"));
    for (name, value) in [("AZURE_USE_AZURE_CLI", "true"), ("AZURE_CREDENTIAL_TYPE", "azure_cli")] {
        let ended = ended(store.serializer(&["run", "true"]).env(name, value).env("PATH", &path));
        is_unusable(ended, "credentials of the Azure CLI are not asked for", "AZURE_STORAGE_TOKEN");
    }
    assert!(!store.locks.dir().join("ran").exists());
}

#[test]
fn nothing_but_a_machine_of_ec2_is_silenced_by_the_variable_for_it() {
    for (url, name, value, asked) in [
        (
            format!("s3://{BUCKET}?endpoint=http://127.0.0.1:1"),
            "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
            "/v2/x",
            "cannot get credentials for AWS",
        ),
        ("gs://b".to_owned(), "HOME", "/nonexistent", "169.254.169.254"),
    ] {
        let store = Store { lease: "3".to_owned(), ..Store::at(&url) };
        let ended = ended(
            store.serializer(&["status"]).env("AWS_EC2_METADATA_DISABLED", "true").env(name, value),
        );
        let is_asked =
            ended.stderr.contains(asked) && !ended.stderr.contains("AWS_EC2_METADATA_DISABLED");
        assert!(ended.code == 1 && is_asked, "{ended:?}");
    }
}

/// An answer with credentials that are good for so long.
fn role(seconds: u64) -> String {
    let end = std::process::Command::new("date")
        .args(["-u", "+%Y-%m-%dT%H:%M:%SZ", "-d", &format!("{seconds} seconds")])
        .output();
    let end = String::from_utf8(end.expect("date runs").stdout).expect("UTF-8");
    let keys = r#""AccessKeyId":"ASIATEST","SecretAccessKey":"hunter2","Token":"hunter3""#;
    let body = format!(r#"{{{keys},"Expiration":"{}"}}"#, end.trim());
    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len())
}

#[test]
fn a_container_s_agent_is_shown_its_token_wherever_that_stands() {
    let agent = Injector::before(shared_s3().address());
    let store = Store::at(&format!(
        "s3://{BUCKET}/p?region=us-east-1&endpoint=http://{}",
        shared_s3().address()
    ));
    let file = store.locks.dir().join("token");
    std::fs::write(&file, "Bearer hunter2").expect("it can be written");
    for (name, value) in [
        ("AWS_CONTAINER_AUTHORIZATION_TOKEN", "Bearer-hunter2"),
        ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", file.to_str().expect("UTF-8")),
        ("AWS_CONTAINER_AUTHORIZATION_TOKEN", ""),
    ] {
        let shown = match (name.ends_with("FILE"), value.is_empty()) {
            (true, _) => "authorization: Bearer hunter2\r\n",
            (_, false) => "authorization: Bearer-hunter2\r\n",
            _ => "GET /v1/credentials",
        };
        agent.refuse(shown, 1, &role(3600));
        let mut command = store.serializer(&["run", "-n", "true"]);
        command.env(
            "AWS_CONTAINER_CREDENTIALS_FULL_URI",
            format!("http://{}/v1/credentials", agent.address()),
        );
        let ran = ended(command.env(name, value));
        assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "{name}");
        assert!(agent.is_through());
    }
}

#[test]
fn a_lease_is_renewed_with_the_last_credentials_while_there_are_no_new_ones() {
    let address = shared_s3().address();
    let refused = error("503 Service Unavailable", "", "Busy", "Later.");
    for is_machine in [false, true] {
        let agent = Injector::before(address);
        let store = Store {
            lease: "3".to_owned(),
            ..Store::at(&format!("s3://{BUCKET}/p?region=us-east-1&endpoint=http://{address}"))
        };
        let mut command = store.command("bash");
        if is_machine {
            command.env("AWS_EC2_METADATA_SERVICE_ENDPOINT", format!("http://{}", agent.address()));
            let text = |text: &str| {
                format!(
                    "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{text}",
                    text.len()
                )
            };
            let lasting = "X-Aws-Ec2-Metadata-Token-Ttl-Seconds: 21600\r\n\r\n";
            agent.refuse(
                "PUT /latest/api/token",
                ALWAYS,
                &text("token").replacen("\r\n\r\n", &format!("\r\n{lasting}"), 1),
            );
            agent.refuse("GET /latest/meta-data/iam/security-credentials/etl", ALWAYS, &role(200));
            agent.refuse("GET /latest/meta-data/iam/security-credentials/ ", ALWAYS, &text("etl"));
        } else {
            command.env(
                "AWS_CONTAINER_CREDENTIALS_FULL_URI",
                format!("http://{}/latest/", agent.address()),
            );
            // So short that they are to be renewed each time.
            agent.refuse("GET /latest/", ALWAYS, &role(200));
        }
        let mut owner = support::Shell::start_with(command);
        owner.lock();
        let aside = store.through(&s3_url_at(address).replace("meltano/state", "p"));
        until_renewed(&aside);
        agent.refuse_instead("/latest/", ALWAYS, &refused);
        agent.take_asked();
        support::until("nobody asks for new ones", || !agent.take_asked().is_empty());
        // Longer than a lease.
        until_renewed(&aside);
        until_renewed(&aside);
        // A command without credentials is told.
        assert_eq!(owner.run(r#""$S" status 2> err"#), 1);
        let said = std::fs::read_to_string(store.locks.dir().join("err")).expect("it was written");
        assert!(said.contains("credentials for AWS"), "{said}");
    }
}

#[test]
fn a_write_that_something_on_the_way_sends_twice_counts_once() {
    let (injector, mut store) = injected();
    store.lease = "3".to_owned();
    assert_eq!(store.run(&["run", "true"]).code, 0);
    let mut owner = store.shell();
    // The second answer says that another process was faster.
    injector.repeat("PUT ", 1);
    owner.lock();
    assert!(injector.is_through());
    assert_eq!(store.run(&["lock", "-n"]).code, 75);
    injector.repeat("PUT ", 1);
    until_renewed(&store);
    assert!(injector.is_through());
    injector.repeat("PUT ", 1);
    owner.unlock();
    assert!(injector.is_through());
    injector.repeat("PUT ", 2);
    let ended = store.run(&["run", "echo", "ran"]);
    assert_eq!((ended.code, ended.stdout.as_str()), (0, "ran\n"), "{ended:?}");
    assert!(injector.is_through());
    assert_eq!(store.state(), "free");
}
