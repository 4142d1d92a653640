/** Cron jobs of instances that stand still: what was due meanwhile has run elsewhere, and does not run again. */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as TestClock from "effect/testing/TestClock"
import { CronJob, Plugin } from "../../src/index.ts"
import { TestCluster } from "../../src/testing/index.ts"

const ticking = (cron: string, runs: Array<string>) =>
  Plugin.make("ticking", {
    load: CronJob.make("tick", cron, ({ at }) =>
      Effect.sync(() => runs.push(new Date(at.epochMilliseconds).toISOString()))
    )
  })

const hour = (n: number) => new Date(n * 3_600_000).toISOString()

describe("an instance that was away", () => {
  it.effect("runs no time again that ran elsewhere, however long ago", () =>
    Effect.gen(function* () {
      const runs: Array<string> = []
      const cluster = yield* TestCluster.make(2, [ticking("0 3 * * *", runs)])
      yield* TestClock.adjust("1 hour")
      yield* cluster.freeze(1)
      yield* TestClock.adjust("8 hours")
      yield* cluster.thaw(1)
      yield* TestClock.adjust("1 hour")
      assert.deepStrictEqual(runs, [hour(3)])
    })
  )

  it.effect("runs no time again that ran elsewhere while it was cut off", () =>
    Effect.gen(function* () {
      const runs: Array<string> = []
      const cluster = yield* TestCluster.make(2, [ticking("0 3 * * *", runs)])
      yield* TestClock.adjust("1 hour")
      yield* cluster.partition([0, "broker"], [1])
      yield* TestClock.adjust("8 hours")
      yield* cluster.heal
      yield* TestClock.adjust("1 hour")
      assert.deepStrictEqual(runs, [hour(3)])
    })
  )

  it.effect("passes over all times but the last one that was due", () =>
    Effect.gen(function* () {
      const runs: Array<string> = []
      const cluster = yield* TestCluster.make(1, [ticking("0 * * * *", runs)])
      yield* TestClock.adjust("90 minutes")
      yield* cluster.freeze(0)
      yield* TestClock.adjust("5 hours")
      yield* cluster.thaw(0)
      yield* TestClock.adjust("1 hour")
      assert.deepStrictEqual(runs, [hour(1), hour(6), hour(7)])
    })
  )

  it.effect("goes on at once when its clock is set forward by years", () =>
    Effect.gen(function* () {
      const runs: Array<string> = []
      const cluster = yield* TestCluster.make(1, [ticking("* * * * *", runs)])
      yield* TestClock.adjust("90 seconds")
      yield* cluster.skew(0, "8766 hours")
      yield* TestClock.adjust("90 seconds")
      assert.deepStrictEqual(
        runs.map((at) => at.slice(0, 16)),
        ["1970-01-01T00:01", "1971-01-01T06:02", "1971-01-01T06:03"]
      )
    })
  )
})
