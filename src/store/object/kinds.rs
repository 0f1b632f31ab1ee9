//! What differs between the kinds of stores, as data.

/// A kind of store, and how its users speak.
pub struct Kind {
    /// Options of the address.
    pub options: &'static [&'static str],
    /// The beginnings of the names of its variables.
    pub variables: &'static [&'static str],
    /// An address.
    pub example: &'static str,
    /// What objects are in.
    pub bucket: &'static str,
    pub credentials: &'static str,
    pub rights: &'static str,
    pub elsewhere: &'static str,
}

pub static S3: Kind = Kind {
    options: &[
        "access_key_id",
        "ca",
        "endpoint",
        "path_style",
        "profile",
        "region",
        "secret_access_key",
        "session_token",
    ],
    variables: &["AWS_"],
    example: "`s3://BUCKET/PREFIX`, or with credentials `s3://KEY:SECRET@BUCKET/PREFIX`",
    bucket: "bucket",
    credentials: "`AWS_PROFILE`, `AWS_ACCESS_KEY_ID` with `AWS_SECRET_ACCESS_KEY` (and \
                  `AWS_SESSION_TOKEN`), the address (`s3://KEY:SECRET@bucket`), or a role of this \
                  host or container provide them",
    rights: "locks require `s3:GetObject` and `s3:PutObject` on the objects, and `s3:ListBucket` \
             on the bucket",
    elsewhere: "`?region=…` and `?endpoint=…` in the address, or `AWS_REGION` and \
                `AWS_ENDPOINT_URL`, say where it is",
};

pub static AZURE: Kind = Kind {
    options: &["account", "account_key", "ca", "endpoint", "sas_token"],
    variables: &["AZURE_", "IDENTITY_ENDPOINT", "MSI_ENDPOINT"],
    example: "`azure://CONTAINER/PREFIX`",
    bucket: "container",
    credentials: "`AZURE_STORAGE_CONNECTION_STRING`, `AZURE_STORAGE_ACCOUNT_NAME` with \
                  `AZURE_STORAGE_ACCOUNT_KEY` or `AZURE_STORAGE_SAS_TOKEN`, or an identity of this \
                  machine provide them",
    rights: "locks require the role `Storage Blob Data Contributor` on the container, or a SAS for \
             it with `sp=rcwl`",
    elsewhere: "`?account=…` or `?endpoint=…` in the address, or `AZURE_STORAGE_ACCOUNT_NAME`, say \
                where it is",
};

pub static GCS: Kind = Kind {
    options: &["application_credentials", "ca", "endpoint"],
    variables: &["GOOGLE_", "SERVICE_ACCOUNT"],
    example: "`gs://BUCKET/PREFIX`",
    bucket: "bucket",
    credentials: "`GOOGLE_APPLICATION_CREDENTIALS`, `gcloud auth application-default login` or an \
                  identity of this machine provide them",
    rights: "locks require the role `roles/storage.objectUser` on the bucket",
    elsewhere: "`?endpoint=…` in the address says where it is",
};
