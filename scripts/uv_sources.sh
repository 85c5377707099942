# To be sourced. Passes pip's package sources on this machine to uv, which does not read pip's settings.
# The CPU build of torch comes from pip's find-links folder if one is configured and contains it, otherwise from
# PyTorch's CPU index.
pip_settings=$("${PYTHON:-python3}" -m pip config list 2>/dev/null || true) # one line each: global.NAME='VALUE'
pip_setting() { sed -n "s/^global\\.$1='\\(.*\\)'\$/\\1/p" <<<"$pip_settings"; }

links=$(pip_setting find-links)
[ -n "$links" ] && export UV_FIND_LINKS="${UV_FIND_LINKS:-$links}"
index=$(pip_setting index-url)
[ -n "$index" ] && export UV_DEFAULT_INDEX="${UV_DEFAULT_INDEX:-$index}"
certificates=$(pip_setting cert)
[ -n "$certificates" ] && export SSL_CERT_FILE="${SSL_CERT_FILE:-$certificates}"
if ! compgen -G "${links:-/nonexistent}/torch-2.13.0+cpu-*.whl" >/dev/null; then
    export UV_TORCH_BACKEND="${UV_TORCH_BACKEND:-cpu}"
fi
