/** `cohort queue …` and `cohort lock …` on what a cluster has on its backends. */
import { afterAll, afterEach, assert, beforeAll, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import * as Scope from "effect/Scope"
import { Cohort, EventQueue, Job, Lock } from "../../src/index.ts"
import * as RabbitServer from "../servers/RabbitServer.ts"
import * as RedisServer from "../servers/RedisServer.ts"
import { killAll, mainWith, until } from "./support.ts"

const scope = Effect.runSync(Scope.make())
const during = <A>(make: Effect.Effect<A, never, Scope.Scope>) => Effect.runPromise(Scope.provide(make, scope))
let urls: { readonly redis: string; readonly amqp: string }

beforeAll(async () => {
  const redis = await during(RedisServer.make())
  const rabbit = await during(RabbitServer.make())
  urls = { redis: redis.url, amqp: rabbit.url }
})
afterAll(() => Effect.runPromise(Scope.close(scope, Exit.void)))
afterEach(killAll)

const app = "operated"
const Mail = Job.make("mail:out", Schema.Struct({ to: Schema.String }))

const cohort = async (backend: string, code: number, ...args: ReadonlyArray<string>) => {
  const env = { REDIS_URL: urls.redis, AMQP_URL: urls.amqp }
  const run = mainWith(env, ...args, "--backend", backend, "--app", app)
  assert.strictEqual(await run.exited, code, run.output)
  return run.output
}

for (const backend of ["redis", "amqp"] as const) {
  describe(`on ${backend}`, () => {
    it("lists, redrives and discards the dead letters of any channel; lists locks", { timeout: 120_000 }, () =>
      Effect.runPromise(
        Effect.gen(function* () {
          const options = { app, backend, redis: { url: urls.redis }, amqp: { url: urls.amqp } }
          const context = yield* Layer.build(Cohort.layerMixed({ ...options, id: "holder 1" }))
          const run = Effect.provide(context)
          const at = (...args: ReadonlyArray<string>) => Effect.promise(() => cohort(backend, 0, ...args))
          const attempts: Array<string> = []
          yield* run(
            EventQueue.subscribe(Mail, {
              process: ({ to }) => {
                attempts.push(to)
                return Effect.fail(new Error("no such\u001b[31m host"))
              }
            })
          )
          for (const id of ["one", "two", "three"]) yield* run(EventQueue.publish(Mail, { to: id }, { id }))
          yield* Effect.promise(() =>
            until("all are dead", async () => {
              const { dead } = await Effect.runPromise(run(EventQueue.depth(Mail)))
              return dead === 3 ? true : undefined
            })
          )

          assert.match(
            yield* at("queue", "list", "mail:out", "empty"),
            /^channel +ready +delayed +in flight +dead\nmail:out +0 +0 +0 +3\nempty +0 +0 +0 +0\n$/
          )
          const dead = yield* at("queue", "dead", "mail:out")
          assert.match(dead, /^two {2}\S+Z {2}Failed after 1 attempt: .*no such\\u001b\[31m host$/m)
          assert.match(dead, /^ {4}\{"to":"two"\}$/m)
          assert.match(dead, /^3 dead letters of 3, oldest first$/m)

          assert.match(yield* at("queue", "discard", "mail:out", "three"), /^1 dead letter discarded\n$/)
          assert.match(yield* at("queue", "redrive", "mail:out", "one"), /^1 dead letter redriven\n$/)
          yield* Effect.promise(() => until("it runs again", () => (attempts.length === 4 ? true : undefined)))
          assert.strictEqual(attempts[3], "one")
          yield* Effect.promise(() =>
            until("it is dead again", async () => {
              const { dead } = await Effect.runPromise(run(EventQueue.depth(Mail)))
              return dead === 2 ? true : undefined
            })
          )
          assert.match(yield* at("queue", "discard", "mail:out", "--all"), /^2 dead letters discarded\n$/)
          assert.match(yield* at("queue", "dead", "mail:out"), /^0 dead letters of 0, oldest first\n$/)

          assert.match(yield* at("lock", "list"), /^no lock is held\n$/)
          const { fence } = yield* run(Lock.acquire("key\nwith lines", { ttl: "1 minute" }))
          assert.match(
            yield* at("lock", "list"),
            new RegExp(
              String.raw`^key +holder +fence +ends within +waiters\nkey\\u000awith lines +holder 1 +${fence} +\d\d s +0\n$`
            )
          )
        }).pipe(Effect.scoped)
      )
    )
  })
}

it("says in one line what cannot be done", { timeout: 120_000 }, async () => {
  for (const [args, line] of [
    [["queue", "list", "--backend", "memory"], /^cohort: COHORT_QUEUE: what is in memory .*\n$/],
    [["lock", "list", "--backend", "memory"], /^cohort: COHORT_LOCK: what is in memory .*\n$/],
    [["queue", "discard", "mail", "--backend", "redis"], /^cohort: queue discard: name the ids, or .*\n$/],
    [
      ["queue", "redrive", "mail", "id", "--all", "--backend", "redis"],
      /^cohort: queue redrive: name the ids, or .*\n$/
    ]
  ] as const) {
    const run = mainWith({ REDIS_URL: urls.redis }, ...args)
    assert.strictEqual(await run.exited, 1, run.output)
    assert.match(run.output, line)
  }
})
