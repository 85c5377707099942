"""Names of response headers. Web pages of other origins may read all of them (CORS)."""

from enum import StrEnum


class ResponseHeader(StrEnum):
    """Response header that web pages of other origins may read only because the gateway lists it (CORS)."""

    AGE = "age"
    ATTEMPTS = "stretto-attempts"  # of checked speech
    CACHE = "stretto-cache"  # of speech that the cache may have
    CONTENT_DISPOSITION = "content-disposition"
    FINISH_REASON = "stretto-finish-reason"  # of a transcript that a limit ended
    IGNORED = "stretto-ignored"
    INPUT_TOKENS = "x-vllm-omni-input-tokens"
    LOCATION = "location"
    MARKER = "stretto-marker"  # of marked audio
    OUTPUT_TOKENS = "x-vllm-omni-output-tokens"
    REQUEST_ID = "x-request-id"
    RETRY_AFTER = "retry-after"
    SAMPLE_RATE = "x-sample-rate"
    TOTAL_TOKENS = "x-vllm-omni-total-tokens"
    WWW_AUTHENTICATE = "www-authenticate"
