/** What the log says of a backend that is away, for as long as it is: a line each time, without a stack. */
import { inspect } from "node:util"
import { assert, it } from "@effect/vitest"
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Schema from "effect/Schema"
import * as Scope from "effect/Scope"
import { TestClock } from "effect/testing"
import { Cache, CronJob, EventQueue, Job, Lock, Singleton, WorkerId } from "../../src/index.ts"
import { TestCache, TestEventQueue, TestLock, TestStores } from "../../src/testing/index.ts"

const Work = Job.make("work", Schema.Void)
const always = { times: Number.POSITIVE_INFINITY }

it.effect("an outage is told in one line, wherever it is noticed", () =>
  Effect.gen(function* () {
    const logs: Array<string> = []
    const logger = Logger.make(({ cause, message }) => {
      const parts = (Array.isArray(message) ? message : [message]).map((part) =>
        typeof part === "string" ? part : inspect(part)
      )
      if (cause.reasons.length > 0) parts.push(Cause.pretty(cause))
      logs.push(parts.join(" "))
    })
    const scope = yield* Scope.make()
    const layer = Layer.merge(TestStores.layerTest, Logger.layer([logger]))
    const stores = yield* Layer.buildWithScope(layer, scope)
    yield* Effect.gen(function* () {
      yield* Layer.build(WorkerId.layer)
      const cache = yield* Cache.make("prices", Schema.Number)
      yield* Singleton.make("inbox", Effect.never)
      yield* CronJob.make("report", "* * * * *", () => Effect.void)
      yield* EventQueue.subscribe(Work, { process: () => Effect.never })
      yield* EventQueue.publish(Work, undefined)
      yield* Effect.forkScoped(Effect.exit(Lock.runExclusive("key", Effect.delay(Effect.void, "1 minute"))))
      yield* TestClock.adjust("1 second")
      for (const { fail } of [TestCache, TestEventQueue, TestLock]) yield* fail("any", always)
      assert.strictEqual(yield* cache.wrap("apple", Effect.succeed(3)), 3)
      yield* TestClock.adjust("5 minutes")
    }).pipe(Effect.provide(stores), Scope.provide(scope))
    const closing = yield* Effect.forkChild(Scope.close(scope, Exit.void))
    yield* TestClock.adjust("5 minutes")
    yield* Fiber.join(closing)

    for (const what of [
      "Cache unavailable",
      "Singleton stopped",
      "Queue unavailable",
      "Job leases not renewed",
      "Lock not released",
      "No worker id",
      "Cron job not published"
    ]) {
      const lines = logs.filter((line) => line.startsWith(what))
      assert.isNotEmpty(lines, what)
      for (const line of lines) assert.notInclude(line, "\n", what)
      assert.isTrue(
        lines.some((line) => line.includes("unavailable: ")),
        lines.join("\n")
      )
    }
  })
)
