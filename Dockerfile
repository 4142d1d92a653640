# The host as a container: `docker build -t cohort .`; runs one instance, on the servers that the environment names.
FROM node:24-slim AS build
WORKDIR /build
COPY package.json package-lock.json ./
RUN npm ci --ignore-scripts --no-audit --no-fund
COPY tsconfig.json tsconfig.build.json README.md CHANGELOG.md LICENSE ./
COPY scripts scripts
COPY src src
RUN node scripts/build.ts && mkdir /package && npm pack --ignore-scripts --pack-destination /package

# What a user installs, with the driver of PostgreSQL beside it.
FROM node:24-slim AS install
WORKDIR /app
COPY --from=build /package /package
COPY package.json /package/
RUN driver="@effect/sql-pg@$(node -p "require('/package/package.json').devDependencies['@effect/sql-pg']")" \
  && npm init --yes >/dev/null \
  && npm install --omit=dev --no-audit --no-fund /package/*.tgz "$driver" \
  && mkdir files

FROM node:24-slim
WORKDIR /app
COPY --from=install /app /app
ENV NODE_ENV=production COHORT_HOST=0.0.0.0 COHORT_PORT=3000 COHORT_INSTANCES=1 COHORT_FILES=/app/files
USER node
EXPOSE 3000
HEALTHCHECK --interval=5s --start-period=20s \
  CMD ["node", "-e", "fetch('http://127.0.0.1:3000/readyz').then(({ ok }) => process.exit(ok ? 0 : 1), () => process.exit(1))"]
# SIGTERM drains: give it COHORT_DRAIN_DELAY, COHORT_SHUTDOWN_TIMEOUT (30 seconds) and 15 seconds to close.
ENTRYPOINT ["node", "node_modules/cohort/dist/main.js"]
CMD ["start"]
