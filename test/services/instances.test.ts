import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Result from "effect/Result"
import { Cohort, CronJob, Instance, Membership, Singleton, QueueAlarms, WorkerId, WorkerMode } from "../../src/index.ts"
import { layerStores } from "../../src/layers/amqp/index.ts"
import { amqpPart } from "../layers/amqp.ts"
import { memory } from "../layers/memory.ts"
import { redis } from "../layers/redis.ts"
import { suite } from "./instances.ts"

suite(memory)
suite(redis)
suite(amqpPart(layerStores))

describe("WorkerMode", () => {
  const does = (text: string) => {
    const mode = Result.getOrThrow(WorkerMode.parse(text))
    return [mode.requests, mode.serves("a"), mode.serves("b")]
  }

  it("is everything, requests, background work, nothing, or a list", () => {
    assert.deepStrictEqual(does(""), [true, true, true])
    assert.deepStrictEqual(does(" "), [true, true, true])
    assert.deepStrictEqual(does("!"), [true, false, false])
    assert.deepStrictEqual(does("*"), [false, true, true])
    assert.deepStrictEqual(does("-"), [false, false, false])
    assert.deepStrictEqual(does("a"), [false, true, false])
    assert.deepStrictEqual(does("a, b"), [false, true, true])
    assert.deepStrictEqual(does("!,a"), [true, true, false])
    assert.deepStrictEqual(does("b,!"), [true, false, true])
    assert.deepStrictEqual(does("!,*"), [true, true, true])
  })

  it("that is none is refused by name", () => {
    for (const text of ["a,", ",", "!a", "a b", "-,a", "!,-", "**"]) {
      const result = WorkerMode.parse(text)
      assert.isTrue(Result.isFailure(result), text)
      if (Result.isFailure(result)) assert.strictEqual(result.failure.field, "workerMode")
    }
  })

  it.effect("is asked for by service", () =>
    Effect.gen(function* () {
      const [mail, reports, requests] = yield* Effect.all([
        WorkerMode.serving("mail"),
        WorkerMode.serving("reports"),
        WorkerMode.servingRequests
      ]).pipe(Effect.provide(Instance.layer({ workerMode: "mail" })))
      assert.deepStrictEqual([mail, reports, requests], [true, false, false])
      const error = yield* Effect.flip(Instance.make({ workerMode: "!mail" }))
      assert.strictEqual(error.field, "workerMode")
    })
  )
})

describe("bad input", () => {
  it.effect("is a typed error that names the field", () =>
    Effect.gen(function* () {
      const field = <E extends { readonly field: string }>(error: E) => error.field
      assert.strictEqual(field(yield* Effect.flip(Singleton.make("", Effect.void))), "name")
      assert.strictEqual(field(yield* Effect.flip(Singleton.make("x", Effect.void, { ttl: 0 }))), "ttl")
      assert.strictEqual(field(yield* Effect.flip(QueueAlarms.make({ interval: 0 }))), "interval")
      assert.strictEqual(
        (yield* Effect.flip(Membership.make({ interval: -1 }))).message,
        "interval: must be positive, got -1 ms"
      )
      assert.strictEqual((yield* Effect.flip(WorkerId.make({ count: 0 }))).reason._tag, "InvalidInput")
      const cron = yield* Effect.flip(CronJob.make("x", "every day", () => Effect.void))
      assert.isTrue(cron.reason._tag === "InvalidInput" && cron.reason.field === "cron")
      const never = yield* Effect.flip(CronJob.make("x", "0 0 30 2 *", () => Effect.void))
      assert.isTrue(never.reason._tag === "InvalidInput" && never.reason.field === "cron")
      const name = yield* Effect.flip(CronJob.make("", "* * * * *", () => Effect.void))
      assert.isTrue(name.reason._tag === "InvalidInput" && name.reason.field === "channel")
    }).pipe(Effect.scoped, Effect.provide(Membership.layer), Effect.provide(Cohort.layerMemory()))
  )
})
