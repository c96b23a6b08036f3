# The image that boxes start from. `box-mcp image build` builds it (box_mcp/engines/images.py);
# `docker build --target base .` does too. Valid for the classic builder: no BuildKit-only syntax.
ARG BASE=debian:bookworm-slim

FROM ${BASE} AS base

# PIP_BREAK_SYSTEM_PACKAGES: a box is thrown away, so pip may install into it without a venv; what it
# installs for the user lands in ~/.local/bin. No LANG: boxd gives commands LC_CTYPE=C.UTF-8, and any
# more would make every bash load the whole locale.
ENV PIP_BREAK_SYSTEM_PACKAGES=1 \
    PATH=/home/box/.local/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin

# iptables is for the server's firewall helper (a short-lived container of this image), not for boxes.
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
        build-essential \
        ca-certificates \
        curl \
        git \
        git-lfs \
        iptables \
        jq \
        less \
        nodejs \
        npm \
        openssh-client \
        procps \
        python-is-python3 \
        python3 \
        python3-pip \
        python3-venv \
        ripgrep \
        sudo \
        unzip \
    && git lfs install --system --skip-repo \
    && apt-get clean \
    && rm -rf /var/lib/apt/lists/* /var/log/apt/* /var/log/dpkg.log /var/log/alternatives.log

# env_keep: `sudo apt-get`, `sudo pip` and `sudo git` must reach the network the way the user's own commands do.
RUN useradd --create-home --uid 1000 --shell /bin/bash box \
    && printf '%s\n' \
        'box ALL=(ALL) NOPASSWD:ALL' \
        'Defaults:box env_keep += "http_proxy https_proxy no_proxy HTTP_PROXY HTTPS_PROXY NO_PROXY"' \
        'Defaults:box env_keep += "SSL_CERT_FILE REQUESTS_CA_BUNDLE CURL_CA_BUNDLE PIP_CERT"' \
        'Defaults:box env_keep += "NODE_EXTRA_CA_CERTS GIT_SSL_CAINFO GIT_CONFIG_SYSTEM PIP_BREAK_SYSTEM_PACKAGES"' \
        > /etc/sudoers.d/box \
    && chmod 0440 /etc/sudoers.d/box \
    && visudo --check --quiet \
    && install --directory --owner=box --group=box /workspace

# Optional extra authorities: ca/*.crt, one certificate a file. c[a] is "ca if it is there", and COPY wants
# at least one source, hence the Dockerfile. Certificates that the image has already are dropped again.
COPY Dockerfile c[a] /usr/local/share/ca-certificates/
RUN rm /usr/local/share/ca-certificates/Dockerfile \
    && find /usr/share/ca-certificates/mozilla /usr/local/share/ca-certificates -name '*.crt' -exec sha256sum {} + \
        | awk 'seen[$1]++ { print $2 }' \
        | xargs --no-run-if-empty rm \
    && update-ca-certificates

LABEL box_mcp.image=base
WORKDIR /workspace
# The server starts its own daemon instead; this is for `docker run` by hand.
CMD ["/bin/bash"]


# The coding agents, for every user. Taken from the packages that hold one platform's programs and nothing
# else: the main packages want a newer Node than Debian's, and Codex's brings what the image has (ripgrep)
# or can't use (voice, its sandbox). Codex looks for its code-mode-host beside itself; newer models need it.
# Nothing of npm's stays behind, and neither program looks for a newer version of itself.
FROM base AS agent

ARG CLAUDE_CODE_VERSION
ARG CODEX_VERSION
ENV DISABLE_AUTOUPDATER=1
RUN : "${CLAUDE_CODE_VERSION:?} ${CODEX_VERSION:?}" \
    && platform="linux-$(dpkg --print-architecture | sed 's/^amd64$/x64/')" \
    && mkdir /tmp/agents \
    && cd /tmp/agents \
    && export HOME=/tmp/agents npm_config_loglevel=error \
    && claude=$(npm pack "@anthropic-ai/claude-code-$platform@$CLAUDE_CODE_VERSION") \
    && codex=$(npm pack "@openai/codex@$CODEX_VERSION-$platform") \
    && cd /usr/local/bin \
    && tar --extract --file "/tmp/agents/$claude" --no-same-owner --strip-components=1 package/claude \
    && tar --extract --file "/tmp/agents/$codex" --no-same-owner --strip-components=4 \
        --wildcards --no-wildcards-match-slash 'package/vendor/*/bin/codex*' \
    && chmod 0755 claude codex codex-code-mode-host \
    && claude --version \
    && codex --version \
    && rm -r /tmp/agents \
    && install --directory /etc/codex \
    && echo 'check_for_update_on_startup = false' > /etc/codex/config.toml

LABEL box_mcp.image=agent
