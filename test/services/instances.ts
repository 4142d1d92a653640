/** What instances are to each other: membership, singletons, worker ids, cron jobs. Runs on every backend. */
import { assert, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Metric from "effect/Metric"
import * as Schema from "effect/Schema"
import * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import {
  type Cohort,
  CronJob,
  EventQueue,
  Health,
  type Instance,
  Job,
  Membership,
  Metrics,
  Plugin,
  PluginHost,
  Singleton,
  QueueAlarms,
  WorkerId
} from "../../src/index.ts"
import type { Backend, TestInstance } from "../../src/testing/contracts/Backend.ts"
import { describeOn, eventually } from "../../src/testing/contracts/support.ts"

const interval = "200 millis"
const ttl = "2 seconds"

export const suite = (backend: Backend): void => {
  const until = (condition: Effect.Effect<boolean, any>, what: string) => eventually(backend, condition, what)

  /** Instances of one cluster that know each other. */
  const cluster = Effect.gen(function* () {
    const { instance } = yield* backend.make
    return (options?: Instance.Options) =>
      Effect.gen(function* () {
        const one = yield* instance(options)
        // Ends before the instance does.
        const scope = yield* Effect.acquireRelease(Scope.make(), (scope) => Scope.close(scope, Exit.void))
        const context = yield* Layer.buildWithScope(
          Layer.provide(Membership.layerWith({ interval }), Layer.succeedContext(one.context)),
          scope
        ).pipe(Effect.orDie)
        return {
          ...one,
          scope,
          leave: Scope.close(scope, Exit.void),
          run: <A, E, R>(
            effect: Effect.Effect<A, E, R>
          ): Effect.Effect<A, E, Exclude<Exclude<R, Membership.Membership>, Cohort.Services>> =>
            one.run(Effect.provide(effect, context))
        }
      })
  })
  type Member = Effect.Success<ReturnType<Effect.Success<typeof cluster>>>

  /** The jobs that an instance has a metric of, but for states without any. */
  const jobsSeenBy = ({ id }: Pick<Member, "id">) =>
    Effect.map(Metric.snapshot, (snapshots) =>
      snapshots
        .flatMap(({ attributes = {}, id: name, state }) => {
          const { value } = state as Metric.GaugeState<number>
          return name === Metrics.queueJobs.id && attributes["messaging.client.id"] === id && value > 0
            ? [`${attributes["messaging.destination.name"]} ${attributes["cohort.job.state"]} ${value}`]
            : []
        })
        .sort()
    )

  const ids = (one: Pick<Member, "run">) =>
    one.run(Membership.Membership.use(({ members }) => Effect.map(members, (members) => members.map(({ id }) => id))))
  const sees = (one: Member, others: ReadonlyArray<{ readonly id: string }>) =>
    until(
      Effect.map(
        ids(one),
        (seen) => JSON.stringify([...seen].sort()) === JSON.stringify(others.map(({ id }) => id).sort())
      ),
      `${one.id} sees ${others.map(({ id }) => id)}`
    )

  const test = (name: string, body: Effect.Effect<void, any, Scope.Scope>) =>
    it.effect(name, () => Effect.provide(body, backend.layer), 60_000)

  describeOn(backend, "Instances", () => {
    test(
      "see each other, the oldest first, with what each says of itself",
      Effect.gen(function* () {
        const start = yield* cluster
        const a = yield* start({ version: "1.2.3" })
        yield* backend.advance("20 millis")
        const b = yield* start({ workerMode: "!,mail" })
        yield* sees(a, [a, b])
        yield* sees(b, [a, b])
        assert.deepStrictEqual(yield* ids(b), [a.id, b.id])
        const [first, second] = yield* a.run(Membership.Membership.use(({ members }) => members))
        assert.strictEqual(first?.version, "1.2.3")
        assert.strictEqual(first?.workerMode, "")
        assert.strictEqual(second?.workerMode, "!,mail")
      })
    )

    test(
      "that stop are gone at once, that die within three intervals; that come back are there again",
      Effect.gen(function* () {
        const start = yield* cluster
        const [a, b, c] = [yield* start(), yield* start(), yield* start()]
        yield* sees(a, [a, b, c])
        yield* b.leave
        yield* sees(a, [a, c])
        yield* c.disconnect
        yield* sees(a, [a])
        yield* sees(c, [c])
        yield* c.reconnect
        yield* sees(a, [a, c])
        yield* sees(c, [a, c])
      })
    )

    test(
      "tell of their plugins, also when one is disabled",
      Effect.gen(function* () {
        const start = yield* cluster
        const [a, b] = [yield* start(), yield* start()]
        const host = yield* Scope.provide(
          a.run(PluginHost.make([Plugin.make("one", {}), Plugin.make("two", {})])),
          a.scope
        )
        const plugins = b
          .run(Membership.Membership.use(({ members }) => members))
          .pipe(Effect.map((members) => members.find(({ id }) => id === a.id)?.plugins.join()))
        yield* until(
          Effect.map(plugins, (seen) => seen === "one,two"),
          "both plugins"
        )
        yield* host.disable("one")
        yield* until(
          Effect.map(plugins, (seen) => seen === "two"),
          "one plugin"
        )
        const changes = yield* b.run(
          Membership.Membership.use(({ changes }) => Stream.runCollect(Stream.take(changes, 1)))
        )
        assert.lengthOf([...changes], 1)
      })
    )

    test(
      "wait in line for a singleton: one runs it, the next when that one stops or dies",
      Effect.gen(function* () {
        const start = yield* cluster
        const running = new Set<string>()
        const fences: Array<number> = []
        let overlaps = 0
        const candidate = (one: TestInstance, scope: Scope.Scope) =>
          Singleton.make(
            "poller",
            (lease) =>
              Effect.gen(function* () {
                if (running.size > 0) overlaps++
                running.add(one.id)
                fences.push(lease.fence)
                yield* Effect.addFinalizer(() => Effect.sync(() => running.delete(one.id)))
                yield* Effect.never
              }),
            { ttl }
          ).pipe(one.run, Scope.provide(scope))
        const [a, b, c] = [yield* start(), yield* start(), yield* start()]
        yield* candidate(a, a.scope)
        yield* until(
          Effect.sync(() => running.has(a.id)),
          "the first runs it"
        )
        yield* candidate(b, b.scope)
        yield* candidate(c, c.scope)
        yield* backend.advance("100 millis")
        yield* a.leave
        yield* until(
          Effect.sync(() => running.size === 1 && !running.has(a.id)),
          "another runs it"
        )
        const holder = running.has(b.id) ? b : c
        const next = holder === b ? c : b
        yield* holder.disconnect
        yield* until(
          Effect.sync(() => running.has(next.id)),
          "the last one runs it"
        )
        yield* until(
          Effect.sync(() => running.size === 1),
          "the one that was cut off has stopped"
        )
        yield* holder.reconnect
        assert.strictEqual(overlaps, 0)
        assert.isTrue(fences.every((fence, i) => i === 0 || fence > fences[i - 1]!))
      })
    )

    test(
      "pass a singleton on that fails; one that succeeds is done",
      Effect.gen(function* () {
        const start = yield* cluster
        const [a, b] = [yield* start(), yield* start()]
        const runs: Array<string> = []
        const once = yield* Deferred.make<void>()
        const fails = (one: Member) =>
          Singleton.make(
            "setup",
            Effect.suspend(() => {
              runs.push(one.id)
              return runs.length === 1 ? Effect.fail("no") : Deferred.succeed(once, undefined)
            }),
            { ttl }
          ).pipe(one.run, Scope.provide(one.scope))
        yield* fails(a)
        yield* fails(b)
        yield* until(Deferred.isDone(once), "it succeeds")
        yield* backend.advance("1 second")
        assert.lengthOf(runs, 2)
      })
    )

    test(
      "have worker ids of their own, the lowest free ones",
      Effect.gen(function* () {
        const start = yield* cluster
        const numbered = (one: Member) =>
          Scope.provide(
            Effect.map(one.run(WorkerId.make({ count: 2, ttl })), ({ current }) => current),
            one.scope
          )
        const [a, b, c] = [yield* start(), yield* start(), yield* start()]
        const [first, second] = [yield* numbered(a), yield* numbered(b)]
        assert.deepStrictEqual([yield* first, yield* second], [0, 1])
        const error = yield* Effect.flip(Effect.scoped(c.run(WorkerId.make({ count: 2, ttl }))))
        assert.strictEqual(error.message, "all 2 worker ids are taken")
        yield* a.leave
        const third = yield* numbered(c)
        assert.strictEqual(yield* third, 0)
        // Whoever is cut off for longer than the ttl has none; then it has one again.
        yield* b.disconnect
        yield* until(Effect.map(Effect.exit(second), Exit.isFailure), "its number is lost")
        assert.strictEqual((yield* Effect.flip(second)).reason._tag, "NotHeld")
        yield* b.reconnect
        yield* until(Effect.map(Effect.exit(second), Exit.isSuccess), "it has a number again")
        assert.strictEqual(yield* second, 1)
      })
    )

    test(
      "run a cron job once per time, on whoever serves it",
      Effect.gen(function* () {
        const start = yield* cluster
        const [a, b, c] = [yield* start(), yield* start({ workerMode: "!" }), yield* start()]
        const runs: Array<{ readonly at: number; readonly on: string; readonly attempt: number }> = []
        yield* Effect.forEach(
          [a, b, c],
          (one) =>
            CronJob.make(
              "tick",
              "* * * * * *",
              ({ at, attempt }) =>
                Effect.suspend(() => {
                  runs.push({ at: at.epochMilliseconds, on: one.id, attempt })
                  return runs.length === 1 ? Effect.fail("once") : Effect.void
                }),
              { service: "tick", maxRetries: 1 }
            ).pipe(one.run, Scope.provide(one.scope)),
          { discard: true }
        )
        yield* until(
          Effect.sync(() => runs.length >= 5),
          "five runs"
        )
        yield* Effect.forEach([a, b, c], ({ leave }) => leave, { discard: true })
        const times = runs.map(({ at }) => at)
        assert.strictEqual(new Set(times).size, times.length - 1, "one of them twice: it was retried")
        assert.deepStrictEqual(
          runs.filter(({ at }) => at === times[0]).map(({ attempt }) => attempt),
          [1, 2]
        )
        assert.isTrue(times.every((at) => at % 1_000 === 0))
        assert.isTrue(runs.every(({ on }) => on !== b.id))
      })
    )

    test(
      "raise the alarm for jobs that nobody serves, until someone does, and for too many dead letters",
      Effect.gen(function* () {
        const start = yield* cluster
        const [a, b] = [yield* start(), yield* start()]
        const Mail = Job.make("mail", Schema.String)
        const Bad = Job.make("bad", Schema.String)
        const health = yield* Health.make
        const alarms = yield* QueueAlarms.make({ after: "300 millis", interval: "100 millis", deadLetters: 1 }).pipe(
          Effect.provideService(Health.Health, health),
          a.run,
          Scope.provide(a.scope)
        )
        const raised = Effect.map(alarms.current, (alarms) =>
          alarms
            .map(({ channel, count, kind }) => `${kind} ${channel} ${count}`)
            .sort()
            .join()
        )
        const subscribe = (one: Member, job: typeof Mail, process: Effect.Effect<void, string>, idle: boolean) =>
          one
            .run(EventQueue.subscribe(job, { process: () => process, idle: Effect.succeed(idle) }))
            .pipe(Scope.provide(one.scope))
        yield* subscribe(b, Mail, Effect.void, false)
        yield* subscribe(b, Bad, Effect.fail("bad"), true)
        yield* b.run(EventQueue.publish(Mail, "hello"))
        yield* b.run(EventQueue.publish(Bad, "one"))
        yield* b.run(EventQueue.publish(Bad, "two"))
        yield* until(
          Effect.map(raised, (raised) => raised === "dying bad 2,unserved mail 1"),
          "the alarms"
        )
        const { components } = yield* health.report
        assert.strictEqual(components.find(({ component }) => component === "queues")?.status, "degraded")
        // The oldest has them as a metric.
        assert.deepStrictEqual(yield* jobsSeenBy(a), ["bad dead 2", "mail ready 1"])
        yield* subscribe(a, Mail, Effect.void, true)
        yield* b.run(EventQueue.discard(Bad, "all"))
        yield* until(
          Effect.map(raised, (raised) => raised === ""),
          "their end"
        )
        assert.deepStrictEqual((yield* health.report).components, [{ component: "queues", status: "up" }])
        assert.deepStrictEqual(yield* jobsSeenBy(a), [])

        // The next one has them when the oldest has gone.
        yield* b
          .run(QueueAlarms.make({ interval: "100 millis" }))
          .pipe(Effect.provideService(Health.Health, health), Scope.provide(b.scope))
        yield* b.run(EventQueue.publish(Bad, "three"))
        yield* until(
          Effect.map(jobsSeenBy(a), (seen) => seen.join() === "bad dead 1"),
          "the oldest sees it"
        )
        assert.deepStrictEqual(yield* jobsSeenBy(b), [])
        yield* a.leave
        assert.deepStrictEqual(yield* jobsSeenBy(a), [])
        yield* until(
          Effect.map(jobsSeenBy(b), (seen) => seen.join() === "bad dead 1"),
          "the next one sees it"
        )
      })
    )
  })
}
