# Two stages: the first builds a virtual environment from the lock, the second holds it and nothing that built it.
# scripts/prove_image.py reads this file and runs its instructions without Docker; it knows only those used here.
# Both stages must name the same image: the environment's Python is the image's.

FROM python:3.13-slim-bookworm AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /opt/build/source

# The dependencies come before the code, so that a change of the code keeps their layer.
COPY requirements-build.lock requirements.lock ./
RUN python -m venv /opt/build/tools \
 && /opt/build/tools/bin/python -m pip install --no-deps --only-binary :all: --require-hashes -r requirements-build.lock
RUN python -m venv --without-pip /opt/headgate \
 && /opt/build/tools/bin/python -m pip --python /opt/headgate/bin/python \
    install --no-deps --no-compile --only-binary :all: --require-hashes -r requirements.lock

COPY pyproject.toml README.md LICENSE ./
COPY gateway ./gateway
COPY monitors ./monitors
RUN /opt/build/tools/bin/python -m pip wheel --no-deps --no-build-isolation --wheel-dir /opt/build/wheels . \
 && /opt/build/tools/bin/python -m pip --python /opt/headgate/bin/python \
    install --no-deps --no-compile --no-index --find-links /opt/build/wheels headgate

# The root file system will be read-only, so the bytecode is made now; by hash, because a copy may change file times.
RUN /opt/headgate/bin/python -m compileall -q -j 0 --invalidation-mode unchecked-hash /opt/headgate/lib


FROM python:3.13-slim-bookworm
ENV PATH=/opt/headgate/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
COPY --from=build /opt/headgate /opt/headgate
RUN install -d -m 0755 /models \
 && install -d -m 0750 -o 10001 -g 10001 /data

USER 10001:10001
WORKDIR /data
VOLUME ["/data"]
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s --retries=3 \
    CMD ["python", "-c", "from urllib.request import ProxyHandler, build_opener; build_opener(ProxyHandler({})).open('http://127.0.0.1:8080/v2/health/live', timeout=2)"]
ENTRYPOINT ["headgate"]
CMD ["serve", "--models", "/models", "--data", "/data", "--host", "0.0.0.0"]
