import { bound, type Workload } from "../bench.ts"
import type { Lockers } from "../contest.ts"

const ttl = 30_000
const setup = "Lock.runExclusive(key, Effect.void, { ttl })"

export const lockers: Lockers = {
  cohort: {
    setup,
    make: async () => {
      const Effect = await import("effect/Effect")
      const { makeRuntime } = await import("./cohort.ts")
      const { Lock } = await import("../../src/index.ts")
      const runtime = makeRuntime()
      const loop = (key: string, entered: () => boolean) => {
        let going = true
        return Effect.whileLoop({
          while: () => going,
          body: () =>
            Lock.runExclusive(
              key,
              Effect.sync(() => {
                going = entered()
              }),
              { ttl }
            ),
          step: () => {}
        })
      }
      return (keys, entered) =>
        runtime.runPromise(
          Effect.forEach(keys, (key, i) => loop(key, () => entered(i)), { concurrency: "unbounded", discard: true })
        )
    }
  }
}

export const lockOne: Workload = {
  name: "lock and release, p50",
  batch: 200,
  contenders: [
    {
      name: "cohort",
      setup: `${setup}; one at a time`,
      make: async () => {
        const Effect = await import("effect/Effect")
        const { makeRuntime } = await import("./cohort.ts")
        const { Lock } = await import("../../src/index.ts")
        const { medianOfEach } = await import("../bench.ts")
        const runtime = makeRuntime({ app: `bench-${process.pid}` })
        return (n) => medianOfEach(n, () => runtime.runPromise(Lock.runExclusive("key", Effect.void, { ttl })))
      }
    },
    bound("2 ms", 2e6)
  ]
}

export const lockMany: Workload = {
  name: "lock, 16 in flight",
  batch: 3_200,
  contenders: [
    {
      name: "cohort",
      setup: `${setup}; 16 in flight, a key each`,
      make: async () => {
        const { timed } = await import("../bench.ts")
        const run = await lockers.cohort!.make()
        const keys = Array.from({ length: 16 }, (_, i) => `lock-${process.pid}-${i}`)
        return (n) => {
          let left = n
          return timed(() => run(keys, () => --left >= keys.length))
        }
      }
    }
  ]
}

export const lockContended: Workload = {
  name: "lock hand-over, 2 × 16",
  batch: 500,
  contenders: [
    {
      name: "cohort",
      setup: `${setup}; 16 loops in each of two processes`,
      make: async () => {
        const { contest } = await import("../contest.ts")
        return async (n) => (await contest("amqp", "cohort", n)).perHandOver * n
      }
    },
    bound("1,000 per second", 1e6)
  ]
}
