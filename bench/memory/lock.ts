import type { Workload } from "../bench.ts"

const contention = 32

export const lockUncontended: Workload = {
  name: "lock, uncontended",
  batch: 20_000,
  contenders: [
    {
      name: "cohort",
      setup: "runExclusive on one key; a lease with ttl, renewal and fence each time",
      make: async () => {
        const Effect = await import("effect/Effect")
        const { makeRuntime, timedOn } = await import("./cohort.ts")
        const { Lock } = await import("../../src/index.ts")
        const runtime = makeRuntime()
        const lock = await runtime.runPromise(Lock.Lock)
        const time = timedOn(runtime)
        let count = 0
        const work = Effect.sync(() => ++count)
        return (n) =>
          time(
            Effect.gen(function* () {
              for (let i = 0; i < n; i++) yield* lock.runExclusive("orders", work)
            })
          )
      }
    },
    {
      name: "async-mutex",
      setup: "new Mutex().runExclusive: one lock, no key, no lease",
      goal: 2,
      make: async () => {
        const { Mutex } = await import("async-mutex")
        const { timed } = await import("../bench.ts")
        const mutex = new Mutex()
        let count = 0
        const work = () => ++count
        return (n) =>
          timed(async () => {
            for (let i = 0; i < n; i++) await mutex.runExclusive(work)
          })
      }
    },
    {
      name: "effect/Semaphore",
      setup: "Semaphore.make(1) with withPermits(1)",
      make: async () => {
        const Effect = await import("effect/Effect")
        const Semaphore = await import("effect/Semaphore")
        const { timed } = await import("../bench.ts")
        const semaphore = Semaphore.makeUnsafe(1)
        let count = 0
        const work = Effect.sync(() => ++count)
        return (n) =>
          timed(() =>
            Effect.runPromise(
              Effect.gen(function* () {
                for (let i = 0; i < n; i++) yield* Semaphore.withPermits(semaphore, 1, work)
              })
            )
          )
      }
    }
  ]
}

export const lockContended: Workload = {
  name: `lock, contended at ${contention}`,
  batch: 16_000,
  contenders: [
    {
      name: "cohort",
      setup: "32 fibers, each in a loop; the work waits for one microtask",
      make: async () => {
        const Effect = await import("effect/Effect")
        const { makeRuntime, timedOn } = await import("./cohort.ts")
        const { Lock } = await import("../../src/index.ts")
        const runtime = makeRuntime()
        const lock = await runtime.runPromise(Lock.Lock)
        const time = timedOn(runtime)
        const work = Effect.callback<void>((resume) => queueMicrotask(() => resume(Effect.void)))
        return (n) =>
          time(
            Effect.forEach(
              Array.from({ length: contention }),
              () =>
                Effect.gen(function* () {
                  for (let i = 0; i < n / contention; i++) yield* lock.runExclusive("orders", work)
                }),
              { concurrency: "unbounded", discard: true }
            )
          )
      }
    },
    {
      name: "async-mutex",
      setup: "32 async functions, each in a loop; the work waits for one microtask",
      goal: 2,
      make: async () => {
        const { Mutex } = await import("async-mutex")
        const { timed } = await import("../bench.ts")
        const mutex = new Mutex()
        const work = async () => {
          await null
        }
        return (n) =>
          timed(() =>
            Promise.all(
              Array.from({ length: contention }, async () => {
                for (let i = 0; i < n / contention; i++) await mutex.runExclusive(work)
              })
            )
          )
      }
    },
    {
      name: "effect/Semaphore",
      setup: "as cohort, with Semaphore.make(1)",
      make: async () => {
        const Effect = await import("effect/Effect")
        const Semaphore = await import("effect/Semaphore")
        const { timed } = await import("../bench.ts")
        const semaphore = Semaphore.makeUnsafe(1)
        const work = Effect.callback<void>((resume) => queueMicrotask(() => resume(Effect.void)))
        return (n) =>
          timed(() =>
            Effect.runPromise(
              Effect.forEach(
                Array.from({ length: contention }),
                () =>
                  Effect.gen(function* () {
                    for (let i = 0; i < n / contention; i++) yield* Semaphore.withPermits(semaphore, 1, work)
                  }),
                { concurrency: "unbounded", discard: true }
              )
            )
          )
      }
    },
    {
      name: "promise chain (raw)",
      setup: "tail = tail.then(work): order and exclusion, nothing else",
      make: async () => {
        const { timed } = await import("../bench.ts")
        let tail: Promise<void> = Promise.resolve()
        const work = async () => {
          await null
        }
        return (n) =>
          timed(() =>
            Promise.all(
              Array.from({ length: contention }, async () => {
                for (let i = 0; i < n / contention; i++) {
                  tail = tail.then(work)
                  await tail
                }
              })
            )
          )
      }
    }
  ]
}
