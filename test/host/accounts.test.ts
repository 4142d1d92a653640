/** What the console's instance knows of the others. */
import { assert, describe, it } from "@effect/vitest"
import * as Context from "effect/Context"
import * as DateTime from "effect/DateTime"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import { layerStores } from "../../src/layers/amqp/index.ts"
import { type Account, Accounts, layer } from "../../src/host/page/Accounts.ts"
import * as RecentLog from "../../src/host/page/RecentLog.ts"
import { behind, totals } from "../../src/host/page/State.ts"
import { Cache, EventQueue, Health, Job, Membership, QueueAlarms } from "../../src/index.ts"
import type { TestBackend } from "../../src/testing/contracts/Backend.ts"
import { describeOn, support } from "../../src/testing/contracts/support.ts"
import { amqpPart } from "../layers/amqp.ts"
import { memory } from "../layers/memory.ts"
import { redis } from "../layers/redis.ts"

for (const backend of [memory, redis, amqpPart(layerStores, { delays: false })]) {
  const { test, within } = support(backend)

  const start = (cluster: TestBackend) =>
    Effect.gen(function* () {
      const one = yield* cluster.instance()
      const base = Layer.mergeAll(Health.layer, RecentLog.layer)
      const layers = layer.pipe(
        Layer.provide(QueueAlarms.layer),
        Layer.provide(Membership.layer),
        Layer.provide(Layer.succeedContext(one.context)),
        Layer.provideMerge(base)
      )
      const context = yield* Effect.orDie(Layer.build(Layer.fresh(layers)))
      const accounts = Context.get(context, Accounts)
      return { ...one, of: (ids: ReadonlyArray<string>) => within(2, one.run(accounts.of(ids))), context }
    })

  describeOn(backend, "Accounts", () => {
    test("are of all instances that are asked for, each by itself; a silent one's is what it last said", (cluster) =>
      Effect.gen(function* () {
        const [a, b, c] = [yield* start(cluster), yield* start(cluster), yield* start(cluster)]
        const all = [a.id, b.id, c.id]
        const Mail = Job.make("mail", Schema.String)
        yield* a.run(EventQueue.publish(Mail, "one"))
        yield* b.run(EventQueue.publish(Mail, "two"))
        yield* b.run(EventQueue.publish(Mail, "three"))
        const numbers = yield* b.run(Cache.make("numbers", Schema.Number))
        yield* numbers.get("none")
        yield* Effect.provide(Effect.logWarning("odd"), b.context)

        const sent = (accounts: ReadonlyArray<Account>) =>
          accounts.map(({ instance, sent }) => [instance, sent.mail ?? 0])
        const found = yield* c.of(all)
        assert.deepStrictEqual(sent(found), [
          [a.id, 1],
          [b.id, 2],
          [c.id, 0]
        ])
        assert.deepStrictEqual(
          found.map(({ misses }) => misses.numbers ?? 0),
          [0, 1, 0]
        )
        assert.deepStrictEqual(
          found.map(({ log }) => log.map(({ text }) => text)),
          [[], ["odd"], []]
        )
        assert.isTrue(found.every(({ health }) => health.live))

        // One that is cut off is as it was; when it is taken for dead, its part goes.
        yield* Effect.addFinalizer(() => b.reconnect)
        yield* b.disconnect
        yield* a.run(EventQueue.publish(Mail, "four"))
        const again = yield* c.of(all)
        assert.deepStrictEqual(sent(again), [
          [a.id, 2],
          [b.id, 2],
          [c.id, 0]
        ])
        assert.deepStrictEqual(again[1]!.at, found[1]!.at)
        assert.deepStrictEqual(sent(yield* c.of([a.id, c.id])), [
          [a.id, 2],
          [c.id, 0]
        ])
        assert.deepStrictEqual(sent(yield* c.of([c.id, b.id])), [[c.id, 0]])
      }))
  })
}

describe("sums over accounts", () => {
  const account = (instance: string, second: number, about: Partial<Account>): Account => ({
    instance,
    at: DateTime.makeUnsafe(second * 1_000),
    health: { live: true, ready: true, phase: "running", components: [] },
    alarms: [],
    sent: {},
    consumed: {},
    hits: {},
    misses: {},
    sync: [],
    gaps: 0,
    leasesLost: 0,
    log: [],
    ...about
  })
  const sent = (instance: string, second: number, mail: number) => account(instance, second, { sent: { mail } })
  const at = (...accounts: ReadonlyArray<Account>) => new Map(accounts.map((one) => [one.instance, one]))

  it("have each instance's growth by its own clock", () => {
    const now = [sent("a", 12, 30), sent("b", 101, 7)]
    const { count, rate } = totals(at(sent("a", 10, 10), sent("b", 100, 2)), now)
    assert.strictEqual(count("sent", "mail"), 37)
    assert.strictEqual(rate("sent", "mail"), 10 + 5)
    assert.strictEqual(count("sent", "none"), 0)
    assert.strictEqual(rate("consumed", "mail"), 0)
  })

  it("do not jump when an instance comes or dies, and one that is silent adds nothing", () => {
    const came = totals(at(sent("a", 10, 10)), [sent("a", 11, 12), sent("b", 11, 1_000)])
    assert.strictEqual(came.rate("sent", "mail"), 2)
    const died = totals(at(sent("a", 10, 10), sent("b", 10, 1_000)), [sent("a", 11, 12)])
    assert.deepStrictEqual([died.count("sent", "mail"), died.rate("sent", "mail")], [12, 2])
    const silent = totals(at(sent("a", 10, 10), sent("b", 10, 1_000)), [sent("a", 11, 12), sent("b", 10, 1_000)])
    assert.deepStrictEqual([silent.count("sent", "mail"), silent.rate("sent", "mail")], [1_012, 2])
  })

  it("say how far an instance is behind those it has heard of", () => {
    const sync = (instance: string, sent: number, last: Record<string, number>) =>
      account(instance, 0, { sync: [{ channel: "fields", sent, last, resync: null }] })
    const all = [sync("a", 5, { b: 1 }), sync("b", 3, { a: 5, gone: 9 }), sync("c", 0, {})]
    assert.deepStrictEqual(
      all.map((one) => behind(all, one, "fields")),
      [2, 0, 0]
    )
    assert.strictEqual(behind(all, all[0]!, "others"), 0)
  })
})
