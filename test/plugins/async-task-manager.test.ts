import { assert, describe, it } from "@effect/vitest"
import * as Context from "effect/Context"
import * as DateTime from "effect/DateTime"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import { TestClock } from "effect/testing"
import { EventQueue, Instance, Plugin, PluginHost } from "../../src/index.ts"
import { Task, Tasks, TaskStore } from "../../src/plugins/async-task-manager/index.ts"
import { eventually, makeCluster } from "./cluster.ts"

/** A task that does what the test says. */
const Work = Task.type("work", {
  params: Schema.Struct({ label: Schema.String, at: Schema.optionalKey(Schema.DateTimeUtcFromString) }),
  result: Schema.Struct({ by: Schema.String, at: Schema.DateTimeUtcFromString }),
  maxRetries: 2,
  timeout: "1 minute"
})
type Work = typeof Work.params.Type

const setup = (
  instances: number,
  work: (params: Work, run: Task.TaskRun, instance: string) => Effect.Effect<unknown, unknown>,
  workers: ReadonlyArray<Partial<(typeof Tasks.TaskWorker)["Service"]>> = []
) =>
  Effect.gen(function* () {
    const slow: { by: Duration.Input } = { by: 0 }
    const calls = { tidied: 0 }
    const interrupted: Array<string> = []

    /** The memory store, whose changes can be slow to be confirmed. */
    const stores = Layer.effect(
      TaskStore.TaskStore,
      Effect.map(TaskStore.TaskStore, (store) => ({
        ...store,
        update: (...change) => Effect.tap(store.update(...change), () => Effect.sleep(slow.by)),
        removeEndedBefore: (time) =>
          Effect.suspend(() => {
            calls.tidied++
            return store.removeEndedBefore(time)
          })
      }))
    ).pipe(Layer.provide(TaskStore.layerMemory))

    const works = Plugin.make("works", {
      dependsOn: [Tasks.plugin],
      beforeLoad: Effect.gen(function* () {
        const instance = yield* Instance.Instance
        const tasks = yield* Tasks.Tasks
        yield* tasks.register(Work, (params, run) =>
          Effect.gen(function* () {
            yield* work(params, run, instance.id)
            return { by: instance.id, at: yield* DateTime.now }
          }).pipe(Effect.onInterrupt(() => Effect.sync(() => interrupted.push(`${params.label} on ${instance.id}`))))
        )
      })
    })

    const cluster = yield* makeCluster({
      stores,
      services: Tasks.layer,
      host: PluginHost.layer([works, Tasks.plugin])
    })
    const start = (id: string, worker: Partial<(typeof Tasks.TaskWorker)["Service"]> = {}, workerMode?: string) =>
      cluster.start(
        id,
        Context.make(Tasks.TaskWorker, { concurrency: 3, idle: Effect.succeed(true), retention: "30 days", ...worker }),
        workerMode
      )
    const apps = []
    for (let i = 0; i < instances; i++) apps.push(yield* start(`i${i}`, workers[i]))
    type App = (typeof apps)[number]
    return { slow, calls, interrupted, start, apps: apps as [App, App, App] }
  })

const use = Tasks.Tasks.use.bind(Tasks.Tasks)
const start = (label: string) => use((tasks) => tasks.start(Work, { label }))
const get = (id: string) => use((tasks) => tasks.get(id))
const cancel = (id: string) => use((tasks) => tasks.cancel(id))
const redrive = (ids: ReadonlyArray<string> | "all") => use((tasks) => tasks.redrive(ids))
const running = use((tasks) => tasks.running)
const result = (id: string) => use((tasks) => tasks.result(Work, id))
const deadLetters = EventQueue.deadLetters(Tasks.RunTask)
const depth = EventQueue.depth(Tasks.RunTask)

const emptyQueue = { ready: 0, delayed: 0, inFlight: 0, dead: 0 }

describe("running tasks", () => {
  it.effect("a task started on any instance runs once, on one of them, and its result is known on all", () =>
    Effect.gen(function* () {
      const runs: Array<string> = []
      const { apps } = yield* setup(3, ({ label }, _, instance) => Effect.sync(() => runs.push(`${label}@${instance}`)))
      const ids: Array<string> = []
      for (const app of apps) ids.push(yield* app.on(start(`from ${app.id}`)))
      yield* TestClock.adjust("1 second")
      assert.sameMembers(
        runs.map((run) => run.split("@")[0]!),
        apps.map(({ id }) => `from ${id}`)
      )
      for (const app of apps) {
        for (const id of ids) {
          const task = yield* app.on(get(id))
          assert.strictEqual(task.status, "succeeded")
          assert.strictEqual(task.attempts, 1)
          assert.isNull(task.error)
          assert.isNotNull(task.startedAt)
          assert.isNotNull(task.endedAt)
          const { by } = Option.getOrThrow(yield* app.on(result(id)))
          assert.strictEqual(by, task.instance)
        }
      }
      assert.deepStrictEqual(yield* apps[0].on(depth), emptyQueue)
    })
  )

  it.effect("parameters and results go through the type's schemas", () =>
    Effect.gen(function* () {
      const seen: Array<Work> = []
      const { apps } = yield* setup(1, (params) => Effect.sync(() => seen.push(params)))
      const at = DateTime.makeUnsafe("2026-01-31T12:00:00Z")
      const id = yield* apps[0].on(use((tasks) => tasks.start(Work, { label: "dated", at })))
      assert.deepStrictEqual((yield* apps[0].on(get(id))).params, { label: "dated", at: "2026-01-31T12:00:00.000Z" })
      yield* TestClock.adjust("1 second")
      assert.deepStrictEqual(
        seen.map(({ at }) => at!.epochMilliseconds),
        [at.epochMilliseconds]
      )
      assert.isTrue(DateTime.isDateTime(Option.getOrThrow(yield* apps[0].on(result(id))).at))
    })
  )

  it.effect("a task has no result before it has succeeded", () =>
    Effect.gen(function* () {
      const { apps } = yield* setup(1, () => Effect.sleep("10 seconds"))
      const id = yield* apps[0].on(start("slow"))
      yield* TestClock.adjust("9 seconds")
      assert.strictEqual((yield* apps[0].on(get(id))).status, "running")
      assert.isTrue(Option.isNone(yield* apps[0].on(result(id))))
      yield* TestClock.adjust("1 second")
      assert.isTrue(Option.isSome(yield* apps[0].on(result(id))))
    })
  )

  it.effect("each instance runs as many at a time as its concurrency says", () =>
    Effect.gen(function* () {
      const { apps } = yield* setup(2, () => Effect.sleep("10 seconds"), [{ concurrency: 1 }, {}])
      for (let i = 0; i < 10; i++) yield* apps[0].on(start(`t${i}`))
      yield* TestClock.adjust("1 second")
      assert.strictEqual((yield* apps[0].on(running)).length, 1)
      assert.strictEqual((yield* apps[1].on(running)).length, 3)
      assert.deepStrictEqual(yield* apps[0].on(depth), { ...emptyQueue, ready: 6, inFlight: 4 })
      yield* TestClock.adjust("10 seconds")
      assert.strictEqual((yield* apps[0].on(running)).length + (yield* apps[1].on(running)).length, 4)
      yield* TestClock.adjust("1 minute")
      assert.deepStrictEqual(yield* apps[0].on(depth), emptyQueue)
    })
  )

  it.effect("an instance whose worker mode does not serve them starts tasks, and others run them", () =>
    Effect.gen(function* () {
      const runs: Array<string> = []
      const { start: startInstance } = yield* setup(0, (_, __, instance) => Effect.sync(() => runs.push(instance)))
      const requests = yield* startInstance("requests", {}, "!")
      const id = yield* requests.on(start("one"))
      yield* TestClock.adjust("1 minute")
      assert.deepStrictEqual(runs, [])
      yield* startInstance("other", {}, "mail")
      yield* TestClock.adjust("1 minute")
      assert.deepStrictEqual(runs, [])
      yield* startInstance("worker", {}, Tasks.service)
      yield* TestClock.adjust("1 second")
      assert.deepStrictEqual(runs, ["worker"])
      assert.strictEqual((yield* requests.on(get(id))).status, "succeeded")
    })
  )

  it.effect("an instance whose idle gate is closed takes nothing, and the others get the tasks", () =>
    Effect.gen(function* () {
      let open = false
      const { apps } = yield* setup(2, () => Effect.sleep("10 seconds"), [{ idle: Effect.sync(() => open) }, {}])
      const ids: Array<string> = []
      for (let i = 0; i < 6; i++) ids.push(yield* apps[0].on(start(`t${i}`)))
      yield* TestClock.adjust("5 seconds")
      assert.deepStrictEqual(yield* apps[0].on(running), [])
      assert.strictEqual((yield* apps[1].on(running)).length, 3)
      open = true
      yield* TestClock.adjust("1 second")
      assert.strictEqual((yield* apps[0].on(running)).length, 3)
      yield* TestClock.adjust("1 minute")
      const instances = yield* Effect.forEach(ids, (id) => Effect.map(apps[0].on(get(id)), ({ instance }) => instance))
      assert.strictEqual(instances.filter((instance) => instance === "i0").length, 3)
    })
  )

  it.effect("progress is seen on every instance while the task runs", () =>
    Effect.gen(function* () {
      const { apps } = yield* setup(2, (_, { progress }) =>
        Effect.gen(function* () {
          for (let done = 1; done <= 3; done++) {
            yield* Effect.sleep("1 second")
            yield* progress({ done, total: 3 })
          }
        })
      )
      const id = yield* apps[0].on(start("steps"))
      const seen = Effect.forEach(apps.slice(0, 2), (app) => Effect.map(app.on(get(id)), ({ progress }) => progress))
      assert.deepStrictEqual(yield* seen, [{ done: 0 }, { done: 0 }])
      yield* TestClock.adjust("2 seconds")
      assert.deepStrictEqual(yield* seen, [
        { done: 2, total: 3 },
        { done: 2, total: 3 }
      ])
    })
  )
})

describe("what cannot be started", () => {
  it.effect("a type that no plugin has registered", () =>
    Effect.gen(function* () {
      const { apps } = yield* setup(1, () => Effect.void)
      const error = yield* Effect.flip(apps[0].on(use((tasks) => tasks.startUnknown("nope", {}))))
      assert.strictEqual(error._tag, "InvalidTask")
      assert.strictEqual(error.message, "nope: no plugin has registered this type")
    })
  )

  it.effect("parameters that the type does not take, and nothing is stored", () =>
    Effect.gen(function* () {
      const { apps } = yield* setup(1, () => Effect.void)
      for (const params of [{}, { label: 1 }, null, { label: "x", at: "not a date" }]) {
        const error = yield* Effect.flip(apps[0].on(use((tasks) => tasks.startUnknown("work", params))))
        assert.strictEqual(error._tag, "InvalidTask")
        assert.match(error.message, /^work: /)
      }
      const wrong = { label: 1 } as unknown as Work
      const error = yield* Effect.flip(apps[0].on(use((tasks) => tasks.start(Work, wrong))))
      assert.strictEqual(error._tag, "InvalidTask")
      assert.include(error.message, "label")
      assert.deepStrictEqual(yield* apps[0].on(use((tasks) => tasks.list())), [])
      assert.deepStrictEqual(yield* apps[0].on(depth), emptyQueue)
    })
  )

  it.effect("what startUnknown takes runs like what start does", () =>
    Effect.gen(function* () {
      const { apps } = yield* setup(1, () => Effect.void)
      const id = yield* apps[0].on(use((tasks) => tasks.startUnknown("work", { label: "by name" })))
      yield* TestClock.adjust("1 second")
      assert.strictEqual((yield* apps[0].on(get(id))).status, "succeeded")
    })
  )

  it.effect("a type registered twice is an error, and free again when its plugin is disabled", () =>
    Effect.gen(function* () {
      const { apps } = yield* setup(1, () => Effect.void)
      const register = Effect.scoped(use((tasks) => tasks.register(Work, () => Effect.never)))
      const error = yield* Effect.flip(apps[0].on(register))
      assert.strictEqual(error.message, "work: registered twice")
      yield* apps[0].on(PluginHost.PluginHost.use((host) => host.disable("works")))
      yield* apps[0].on(register)
      assert.strictEqual(
        (yield* Effect.flip(apps[0].on(use((tasks) => tasks.startUnknown("work", { label: "x" })))))._tag,
        "InvalidTask"
      )
    })
  )

  it.effect("a task that is not there cannot be read or cancelled", () =>
    Effect.gen(function* () {
      const { apps } = yield* setup(1, () => Effect.void)
      assert.strictEqual((yield* Effect.flip(apps[0].on(get("nope"))))._tag, "TaskNotFound")
      assert.strictEqual((yield* Effect.flip(apps[0].on(cancel("nope"))))._tag, "TaskNotFound")
      assert.strictEqual(yield* apps[0].on(redrive(["nope"])), 0)
    })
  )
})

describe("cancelling", () => {
  it.effect("from an instance that does not run the task interrupts its fiber where it runs", () =>
    Effect.gen(function* () {
      const { apps, interrupted } = yield* setup(3, () => Effect.never, [
        { idle: Effect.succeed(false) },
        {},
        { idle: Effect.succeed(false) }
      ])
      const [id, other] = [yield* apps[0].on(start("stop me")), yield* apps[0].on(start("leave me"))]
      yield* TestClock.adjust("1 second")
      assert.deepStrictEqual(yield* apps[1].on(running), [id, other])
      assert.isTrue(yield* apps[2].on(cancel(id)))
      yield* TestClock.adjust("1 milli")
      assert.deepStrictEqual(interrupted, ["stop me on i1"])
      // A good end: neither to be retried nor a dead letter.
      assert.deepStrictEqual(yield* apps[0].on(depth), { ...emptyQueue, inFlight: 1 })
      assert.deepStrictEqual(yield* apps[1].on(running), [other])
      for (const app of apps) {
        const task = yield* app.on(get(id))
        assert.strictEqual(task.status, "canceled")
        assert.isNotNull(task.endedAt)
      }
      yield* TestClock.adjust("30 seconds")
      assert.strictEqual((yield* apps[0].on(get(id))).attempts, 1)
      assert.deepStrictEqual(yield* apps[0].on(depth), { ...emptyQueue, inFlight: 1 })
    })
  )

  it.effect("on the instance that runs the task works as well", () =>
    Effect.gen(function* () {
      const { apps, interrupted } = yield* setup(1, () => Effect.never)
      const id = yield* apps[0].on(start("stop me"))
      yield* TestClock.adjust("1 second")
      assert.isTrue(yield* apps[0].on(cancel(id)))
      yield* TestClock.adjust("1 second")
      assert.deepStrictEqual(interrupted, ["stop me on i0"])
    })
  )

  it.effect("a pending task keeps it from ever running", () =>
    Effect.gen(function* () {
      let open = false
      const runs: Array<string> = []
      const { apps } = yield* setup(2, ({ label }) => Effect.sync(() => runs.push(label)), [
        { idle: Effect.sync(() => open) },
        { idle: Effect.sync(() => open) }
      ])
      const [canceled, kept] = [yield* apps[0].on(start("canceled")), yield* apps[0].on(start("kept"))]
      assert.isTrue(yield* apps[1].on(cancel(canceled)))
      open = true
      yield* TestClock.adjust("10 seconds")
      assert.deepStrictEqual(runs, ["kept"])
      assert.strictEqual((yield* apps[0].on(get(canceled))).status, "canceled")
      assert.strictEqual((yield* apps[0].on(get(kept))).status, "succeeded")
      assert.deepStrictEqual(yield* apps[0].on(depth), emptyQueue)
    })
  )

  it.effect("a task that waits for a retry keeps it from running again", () =>
    Effect.gen(function* () {
      let runs = 0
      const { apps } = yield* setup(2, () => Effect.suspend(() => Effect.fail(`failure ${++runs}`)))
      const id = yield* apps[0].on(start("fails"))
      yield* TestClock.adjust("100 millis")
      assert.strictEqual((yield* apps[0].on(get(id))).status, "pending")
      assert.isTrue(yield* apps[1].on(cancel(id)))
      yield* TestClock.adjust("1 minute")
      assert.strictEqual(runs, 1)
      assert.strictEqual((yield* apps[0].on(get(id))).status, "canceled")
      assert.deepStrictEqual(yield* apps[0].on(depth), emptyQueue)
    })
  )

  it.effect("a task that has ended changes nothing and says so", () =>
    Effect.gen(function* () {
      const { apps } = yield* setup(2, () => Effect.void)
      const id = yield* apps[0].on(start("done"))
      yield* TestClock.adjust("1 second")
      assert.isFalse(yield* apps[1].on(cancel(id)))
      assert.strictEqual((yield* apps[0].on(get(id))).status, "succeeded")
    })
  )

  it.effect("by two instances at once is one cancellation", () =>
    Effect.gen(function* () {
      const { apps } = yield* setup(3, () => Effect.never)
      const id = yield* apps[0].on(start("stop me"))
      yield* TestClock.adjust("1 second")
      const answers = yield* Effect.forEach(apps, (app) => app.on(cancel(id)), { concurrency: "unbounded" })
      assert.sameMembers(answers, [true, false, false])
      yield* TestClock.adjust("1 second")
    })
  )

  it.effect("should the word be lost, the next progress report ends the task", () =>
    Effect.gen(function* () {
      const reports: Array<number> = []
      const { apps, interrupted } = yield* setup(
        2,
        (_, { progress }) =>
          Effect.gen(function* () {
            for (let done = 1; done < 100; done++) {
              yield* Effect.sleep("1 second")
              yield* progress({ done })
              reports.push(done)
            }
          }),
        [{}, { idle: Effect.succeed(false) }]
      )
      const id = yield* apps[0].on(start("unreachable"))
      yield* TestClock.adjust("3500 millis")
      yield* apps[0].disconnect
      assert.isTrue(yield* apps[1].on(cancel(id)))
      assert.deepStrictEqual(interrupted, [])
      yield* TestClock.adjust("500 millis")
      assert.deepStrictEqual(interrupted, ["unreachable on i0"])
      assert.deepStrictEqual(reports, [1, 2, 3])
      yield* apps[0].reconnect
      yield* TestClock.adjust("1 minute")
      assert.strictEqual((yield* apps[0].on(get(id))).status, "canceled")
      assert.deepStrictEqual(yield* apps[0].on(depth), emptyQueue)
    })
  )

  it.effect("a task that is just being started stops it before its handler runs", () =>
    Effect.gen(function* () {
      const runs: Array<string> = []
      const { apps, slow } = yield* setup(2, ({ label }) => Effect.sync(() => runs.push(label)), [
        {},
        { idle: Effect.succeed(false) }
      ])
      slow.by = "2 seconds"
      const id = yield* apps[0].on(start("nearly"))
      yield* TestClock.adjust("1 second")
      // The row says so; the instance that runs it has not been told yet.
      assert.strictEqual((yield* apps[1].on(get(id))).status, "running")
      slow.by = 0
      assert.isTrue(yield* apps[1].on(cancel(id)))
      yield* TestClock.adjust("1 minute")
      assert.deepStrictEqual(runs, [])
      assert.strictEqual((yield* apps[1].on(get(id))).status, "canceled")
    })
  )
})

describe("failing", () => {
  it.effect("a task is tried again as often as its type says, and a late success is a success", () =>
    Effect.gen(function* () {
      const attempts: Array<number> = []
      const { apps } = yield* setup(2, (_, { attempt }) =>
        Effect.suspend(() => {
          attempts.push(attempt)
          return attempt < 3 ? Effect.fail(new Error(`failure ${attempt}`)) : Effect.void
        })
      )
      const id = yield* apps[0].on(start("third time lucky"))
      yield* TestClock.adjust("100 millis")
      const waiting = yield* apps[1].on(get(id))
      assert.strictEqual(waiting.status, "pending")
      assert.strictEqual(waiting.error, "failure 1")
      assert.isNull(waiting.endedAt)
      yield* TestClock.adjust("10 seconds")
      assert.deepStrictEqual(attempts, [1, 2, 3])
      const task = yield* apps[1].on(get(id))
      assert.strictEqual(task.status, "succeeded")
      assert.strictEqual(task.attempts, 3)
      assert.isNull(task.error)
    })
  )

  it.effect(
    "a task that fails for good is failed and a dead letter, and redriving gives it all its attempts again",
    () =>
      Effect.gen(function* () {
        let broken = true
        const attempts: Array<number> = []
        const { apps } = yield* setup(2, (_, { attempt }) =>
          Effect.suspend(() => {
            attempts.push(attempt)
            return broken ? Effect.fail(new Error(`failure ${attempts.length}`)) : Effect.void
          })
        )
        const id = yield* apps[0].on(start("broken"))
        yield* TestClock.adjust("10 seconds")
        const failed = yield* apps[1].on(get(id))
        assert.strictEqual(failed.status, "failed")
        assert.strictEqual(failed.error, "failure 3")
        assert.isNotNull(failed.endedAt)
        const dead = yield* apps[1].on(deadLetters)
        assert.deepStrictEqual(
          dead.map(({ attempts, id, reason }) => ({ id, attempts, reason })),
          [{ id, attempts: 3, reason: "Failed" }]
        )
        assert.include(dead[0]!.firstError, "failure 1")
        assert.include(dead[0]!.lastError, "failure 3")

        assert.strictEqual(yield* apps[1].on(redrive([id])), 1)
        yield* TestClock.adjust("10 seconds")
        assert.deepStrictEqual(attempts, [1, 2, 3, 1, 2, 3])
        assert.strictEqual((yield* apps[0].on(get(id))).status, "failed")

        broken = false
        assert.strictEqual(yield* apps[0].on(redrive("all")), 1)
        yield* TestClock.adjust("10 seconds")
        const task = yield* apps[0].on(get(id))
        assert.strictEqual(task.status, "succeeded")
        assert.strictEqual(task.attempts, 7)
        assert.isNull(task.error)
        assert.deepStrictEqual(yield* apps[0].on(deadLetters), [])
        assert.strictEqual(yield* apps[0].on(redrive([id])), 0)
        assert.strictEqual((yield* apps[0].on(get(id))).status, "succeeded")
      })
  )

  it.effect("redriving a failed task whose dead letter was discarded leaves it failed", () =>
    Effect.gen(function* () {
      const { apps } = yield* setup(1, () => Effect.fail("no"))
      const id = yield* apps[0].on(start("broken"))
      yield* TestClock.adjust("10 seconds")
      yield* apps[0].on(EventQueue.discard(Tasks.RunTask, "all"))
      assert.strictEqual(yield* apps[0].on(redrive([id])), 0)
      assert.strictEqual((yield* apps[0].on(get(id))).status, "failed")
    })
  )

  it.effect("an attempt that takes longer than its type allows is interrupted, and fails", () =>
    Effect.gen(function* () {
      const { apps, interrupted } = yield* setup(1, () => Effect.never)
      const id = yield* apps[0].on(start("long"))
      yield* TestClock.adjust("59 seconds")
      assert.deepStrictEqual(interrupted, [])
      yield* TestClock.adjust("1 second")
      assert.deepStrictEqual(interrupted, ["long on i0"])
      assert.strictEqual((yield* apps[0].on(get(id))).error, "timed out after 1m")
      yield* TestClock.adjust("3 minutes")
      const task = yield* apps[0].on(get(id))
      assert.strictEqual(task.status, "failed")
      assert.strictEqual(task.attempts, 3)
      assert.strictEqual(task.error, "timed out after 1m")
      assert.strictEqual((yield* apps[0].on(deadLetters)).length, 1)
    })
  )

  it.effect("a handler that dies, or interrupts itself, has failed", () =>
    Effect.gen(function* () {
      const { apps } = yield* setup(1, ({ label }) =>
        label === "dies" ? Effect.die(new TypeError("x is not a function")) : Effect.interrupt
      )
      const [dies, stops] = [yield* apps[0].on(start("dies")), yield* apps[0].on(start("stops"))]
      yield* TestClock.adjust("10 seconds")
      const [died, stopped] = [yield* apps[0].on(get(dies)), yield* apps[0].on(get(stops))]
      assert.deepStrictEqual([died.status, died.error], ["failed", "x is not a function"])
      assert.deepStrictEqual([stopped.status, stopped.error], ["failed", "interrupted"])
      assert.strictEqual((yield* apps[0].on(deadLetters)).length, 2)
    })
  )

  it.effect("a task whose type is not registered where it is taken waits until it is", () =>
    Effect.gen(function* () {
      const { apps } = yield* setup(1, () => Effect.void)
      const host = PluginHost.PluginHost
      yield* apps[0].on(host.use((host) => host.disable("works")))
      const id = yield* apps[0].on(start("homeless"))
      yield* TestClock.adjust("10 seconds")
      const task = yield* apps[0].on(get(id))
      assert.deepStrictEqual([task.status, task.error], ["pending", null])
      yield* apps[0].on(host.use((host) => host.enable("works")))
      yield* TestClock.adjust("1 second")
      assert.strictEqual((yield* apps[0].on(get(id))).status, "succeeded")
    })
  )

  it.effect("tasks whose type is not registered on one instance are run by another", () =>
    Effect.gen(function* () {
      const { apps } = yield* setup(2, () => Effect.void)
      const host = PluginHost.PluginHost
      yield* apps[0].on(host.use((host) => host.disable("works")))
      const ids = yield* Effect.forEach(Array.from({ length: 10 }), (_, i) => apps[0].on(start(`task ${i}`)))
      yield* TestClock.adjust("1 minute")
      for (const id of ids) {
        const task = yield* apps[0].on(get(id))
        assert.deepStrictEqual([task.status, task.instance], ["succeeded", apps[1].id])
      }
    })
  )
})

describe("instances that go", () => {
  it.effect("an instance that stops lets its tasks finish", () =>
    Effect.gen(function* () {
      const { apps, interrupted } = yield* setup(2, () => Effect.sleep("20 seconds"), [
        {},
        { idle: Effect.succeed(false) }
      ])
      const id = yield* apps[0].on(start("nearly done"))
      yield* TestClock.adjust("1 second")
      yield* apps[0].close
      assert.deepStrictEqual(interrupted, [])
      const task = yield* apps[1].on(get(id))
      assert.deepStrictEqual([task.status, task.instance], ["succeeded", "i0"])
    })
  )

  it.effect("a task that is not done when its instance has to stop is given back, and another finishes it", () =>
    Effect.gen(function* () {
      const attempts: Array<number> = []
      const { apps, interrupted } = yield* setup(
        2,
        (_, { attempt }, instance) =>
          Effect.suspend(() => {
            attempts.push(attempt)
            return Effect.sleep(instance === "i0" ? "50 seconds" : "5 seconds")
          }),
        [{}, { concurrency: 1 }]
      )
      // The first instance takes both tasks of a pair that the second, busy with its own, cannot.
      const ids = yield* Effect.forEach(["a", "b", "c", "d"], (label) => apps[0].on(start(label)))
      yield* TestClock.adjust("1 second")
      const mine = yield* apps[0].on(running)
      assert.isNotEmpty(mine)
      yield* apps[0].close
      assert.strictEqual(interrupted.length, mine.length)
      yield* TestClock.adjust("1 minute")
      for (const id of ids) {
        const task = yield* apps[1].on(get(id))
        assert.deepStrictEqual([task.status, task.instance], ["succeeded", "i1"])
      }
      // Given back: the attempt does not count.
      assert.isTrue(attempts.every((attempt) => attempt === 1))
      assert.deepStrictEqual(yield* apps[1].on(depth), emptyQueue)
    })
  )

  it.effect("a task given back is pending as if it had not been run, but for the count", () =>
    Effect.gen(function* () {
      const { apps } = yield* setup(2, () => Effect.never, [{}, { idle: Effect.succeed(false) }])
      const id = yield* apps[0].on(start("unfinished"))
      yield* TestClock.adjust("1 second")
      yield* apps[0].close
      const task = yield* apps[1].on(get(id))
      assert.deepStrictEqual([task.status, task.error, task.endedAt, task.attempts], ["pending", null, null, 1])
      assert.deepStrictEqual(yield* apps[1].on(depth), { ...emptyQueue, ready: 1 })
    })
  )

  const cutOff = (sleep: Duration.Input, after: "finishes" | "is interrupted") =>
    Effect.gen(function* () {
      const runs: Array<string> = []
      let results = 0
      let open = false
      const { apps, interrupted } = yield* setup(
        2,
        (_, run, instance) =>
          Effect.gen(function* () {
            runs.push(instance)
            yield* Effect.sleep(instance === "i0" ? sleep : "20 seconds")
            yield* run.progress({ done: 1 })
            results++
          }),
        [{}, { idle: Effect.sync(() => open) }]
      )
      const id = yield* apps[0].on(start("contested"))
      yield* TestClock.adjust("1 second")
      yield* apps[0].disconnect
      open = true
      // The lease runs out: the other instance runs the task now.
      yield* TestClock.adjust("40 seconds")
      assert.deepStrictEqual(runs, ["i0", "i1"])
      const taken = yield* apps[1].on(get(id))
      assert.deepStrictEqual([taken.status, taken.instance, taken.attempts], ["running", "i1", 2])
      if (after === "is interrupted") {
        yield* apps[0].reconnect
        yield* eventually(
          Effect.sync(() => interrupted.includes("contested on i0")),
          "the stale run is interrupted"
        )
      } else {
        yield* eventually(
          Effect.map(apps[0].on(running), (running) => running.length === 0),
          "the stale run has ended"
        )
      }
      // What became of the stale run changes nothing.
      const still = yield* apps[1].on(get(id))
      assert.deepStrictEqual([still.status, still.instance, still.attempts], ["running", "i1", 2])
      assert.deepStrictEqual(still.progress, { done: 0 })
      yield* apps[0].reconnect
      yield* TestClock.adjust("2 minutes")
      const task = yield* apps[1].on(get(id))
      assert.deepStrictEqual([task.status, task.instance, task.attempts], ["succeeded", "i1", 2])
      assert.strictEqual(Option.getOrThrow(yield* apps[1].on(result(id))).by, "i1")
      assert.deepStrictEqual(runs, ["i0", "i1"])
      assert.strictEqual(results, 1)
      assert.deepStrictEqual(yield* apps[1].on(depth), emptyQueue)
    })

  it.effect(
    "an instance cut off past its lease: another runs the task, and what the first one finishes is ignored",
    () => cutOff("42 seconds", "finishes")
  )

  it.effect("an instance cut off past its lease: another runs the task, and the first one's run is interrupted", () =>
    cutOff("55 seconds", "is interrupted")
  )
})

describe("tidying up", () => {
  it.effect("one instance does it, every hour, and another when that one stops", () =>
    Effect.gen(function* () {
      const { apps, calls } = yield* setup(3, () => Effect.void)
      yield* TestClock.adjust("1 second")
      assert.strictEqual(calls.tidied, 1)
      yield* TestClock.adjust("2 hours")
      assert.strictEqual(calls.tidied, 3)
      yield* apps[0].close
      yield* TestClock.adjust("1 second")
      assert.strictEqual(calls.tidied, 4)
      yield* TestClock.adjust("1 hour")
      assert.strictEqual(calls.tidied, 5)
    })
  )

  it.effect("tasks that ended longer ago than the retention are forgotten, and no others", () =>
    Effect.gen(function* () {
      let long = false
      const { apps } = yield* setup(1, () => (long ? Effect.sleep("50 seconds") : Effect.void), [
        { retention: "2 hours" }
      ])
      const old = yield* apps[0].on(start("old"))
      yield* TestClock.adjust("90 minutes")
      const young = yield* apps[0].on(start("young"))
      yield* TestClock.adjust("5370 seconds")
      long = true
      const unended = yield* apps[0].on(start("unended"))
      assert.strictEqual((yield* apps[0].on(get(old))).status, "succeeded")
      yield* TestClock.adjust("31 seconds")
      assert.strictEqual((yield* Effect.flip(apps[0].on(get(old))))._tag, "TaskNotFound")
      assert.strictEqual((yield* apps[0].on(get(young))).status, "succeeded")
      assert.strictEqual((yield* apps[0].on(get(unended))).status, "running")
    })
  )

  it.effect("a task that was stored but never queued is queued", () =>
    Effect.gen(function* () {
      const { apps } = yield* setup(2, () => Effect.void)
      const task: Task.Task = {
        id: "lost",
        type: "work",
        params: { label: "lost" },
        status: "pending",
        progress: { done: 0 },
        attempts: 0,
        instance: null,
        result: null,
        error: null,
        createdAt: yield* DateTime.now,
        startedAt: null,
        endedAt: null
      }
      yield* apps[0].on(TaskStore.TaskStore.use((store) => store.insert(task)))
      yield* TestClock.adjust("59 minutes")
      assert.strictEqual((yield* apps[0].on(get("lost"))).status, "pending")
      yield* TestClock.adjust("2 minutes")
      assert.strictEqual((yield* apps[0].on(get("lost"))).status, "succeeded")
    })
  )
})

describe("the memory store", () => {
  it.effect("changes a task only in the statuses and the run it is asked for", () =>
    Effect.gen(function* () {
      const { apps } = yield* setup(1, () => Effect.sleep("10 seconds"))
      const id = yield* apps[0].on(start("t"))
      yield* TestClock.adjust("1 second")
      const update = (from: ReadonlyArray<Task.TaskStatus>, attempts?: number) =>
        apps[0].on(
          TaskStore.TaskStore.use((store) => store.update(id, from, { error: `${from}/${attempts}` }, attempts))
        )
      assert.isTrue(Option.isNone(yield* update(["pending", "failed"])))
      assert.isTrue(Option.isNone(yield* update(["running"], 2)))
      assert.isNull((yield* apps[0].on(get(id))).error)
      assert.isTrue(Option.isSome(yield* update(["running"], 1)))
      assert.isTrue(Option.isSome(yield* update(["running"])))
    })
  )

  it.effect("lists the newest first, by status, as many as asked for", () =>
    Effect.gen(function* () {
      const { apps } = yield* setup(1, ({ label }) => (label === "c" ? Effect.fail("no") : Effect.void))
      const ids = yield* Effect.forEach(["a", "b", "c"], (label) => apps[0].on(start(label)))
      yield* TestClock.adjust("10 seconds")
      const list = (filter?: Parameters<TaskStore.TaskStore["Service"]["list"]>[0]) =>
        Effect.map(apps[0].on(use((tasks) => tasks.list(filter))), (tasks) => tasks.map(({ id }) => id))
      assert.deepStrictEqual(yield* list(), [...ids].reverse())
      assert.deepStrictEqual(yield* list({ limit: 1 }), [ids[2]])
      assert.deepStrictEqual(yield* list({ status: "failed" }), [ids[2]])
      assert.deepStrictEqual(yield* list({ status: "succeeded" }), [ids[1], ids[0]])
    })
  )
})
