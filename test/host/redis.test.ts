/** The host on Redis: a supervisor, and a process for each instance. */
import { afterAll, afterEach, assert, beforeAll, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Scope from "effect/Scope"
import * as RedisServer from "../servers/RedisServer.ts"
import { startOn, suite } from "./cluster.ts"
import { descendants, isAlive, killAll, main, saysInOneLine, shellOnly, until, urls } from "./support.ts"

const scope = Effect.runSync(Scope.make())
let server: RedisServer.RedisServer

beforeAll(async () => {
  server = await Effect.runPromise(Scope.provide(RedisServer.make(), scope))
})
afterAll(() => Effect.runPromise(Scope.close(scope, Exit.void)))

const command = (...args: ReadonlyArray<string>) =>
  Effect.runPromise(server.command(...args)) as Promise<ReadonlyArray<string>>

suite({
  backend: "redis",
  named: () => ({ REDIS_URL: server.url }),
  binaries: [/^redis-server/],
  tasks: (app) => command("HVALS", `cohort-host:{${app}}:tasks`),
  stored: async () => [...(await command("KEYS", "*"))].sort()
})

const start = startOn("redis")
afterEach(killAll)

it("kills an instance that does not stop when the time that its settings give it is over", {
  timeout: 90_000
}, async () => {
  // 16 seconds; 50 would be too late for `until`.
  const host = start(
    { REDIS_URL: server.url, COHORT_SHUTDOWN_TIMEOUT: "1 second" },
    "--instances",
    "1",
    "--app",
    "stuck"
  )
  await urls(host, 1)
  const started = descendants(host.pid)
  const stuck = started.find(({ command }) => /instance --id a-[0-9a-f]{12} /.test(command))
  assert.isDefined(stuck, "its id is one that no other supervisor gives")
  process.kill(stuck.pid, "SIGSTOP")
  host.kill("SIGINT")
  await until("it is gone", () => (isAlive(stuck.pid) ? undefined : true))
  assert.strictEqual(await host.exited, 130, host.output)
})

it("says in one line what is wrong", { timeout: 30_000 }, () =>
  shellOnly((path) =>
    saysInOneLine([
      [main("start", "--backend", "rabbit"), /^cohort: --backend: must be memory, redis or amqp, got "rabbit"\n$/],
      [start({ PATH: path }), /^cohort: there is no redis-server on the PATH: .*\n$/],
      [start({ REDIS_URL: "nowhere" }), /^cohort: REDIS_URL: must be like .*\n$/],
      [
        start({ REDIS_URL: "redis://:s3cret@127.0.0.1:1", REDIS_TIMEOUT: "2 seconds" }),
        /^cohort: REDIS_URL: redis is unavailable: .*ECONNREFUSED.*\n$/
      ],
      [start({ REDIS_URL: server.url, REDIS_TIMEOUT: "soon" }), /^cohort: REDIS_TIMEOUT: expected .*\n$/],
      [
        start({ REDIS_URL: server.url, COHORT_QUEUE: "rabbit" }),
        /^cohort: COHORT_QUEUE: expected "memory" \| "redis" \| "amqp"\n$/
      ],
      [
        start({ REDIS_URL: server.url, COHORT_LOCK: "memory" }),
        /^cohort: COHORT_LOCK: memory is not shared by processes\n$/
      ],
      [
        start({ REDIS_URL: server.url }, "--port", String(server.port)),
        /^cohort: instance a: port \d+ of [\d.]+ is taken: .*\n$/
      ]
    ])
  )
)
