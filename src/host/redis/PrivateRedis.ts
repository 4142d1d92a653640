/** A `redis-server` of the host's own. */
import * as SecureRandom from "effect/crypto/SecureRandom"
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import * as PrivateServer from "../PrivateServer.ts"

export const start = PrivateServer.start({
  name: "redis-server",
  advice: "install it (apt-get install redis-server, brew install redis), or name a Redis in REDIS_URL",
  // It reads its configuration from its input: a command line can be seen by everyone.
  script: `
command -v redis-server >/dev/null || exit 127
redis-server - 3<&- <<END &
$CONFIG
END
server=$!`,
  configure: (directory, freePort) =>
    Effect.map(freePort, (port) => {
      const password = SecureRandom.uuidV4Unsafe()
      const config = [
        "bind 127.0.0.1",
        `port ${port}`,
        `requirepass ${password}`,
        `dir "${directory}"`,
        'save ""',
        "appendonly yes",
        "daemonize no",
        'logfile ""'
      ].join("\n")
      return {
        url: Redacted.make(`redis://:${password}@127.0.0.1:${port}`),
        env: { CONFIG: Redacted.make(config) }
      }
    }),
  ready: "Ready to accept connections",
  problem: /already in use|failed|fatal|can't/i,
  startWithin: "10 seconds"
})
