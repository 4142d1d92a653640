import { assert, describe, it } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import * as Scope from "effect/Scope"
import { TestClock } from "effect/testing"
import { Cohort, EventQueue, Lock, Plugin, PluginHost, PubSub, SyncMessage } from "../../src/index.ts"
import { MemoryHub } from "../../src/layers/memory/index.ts"
import { memory } from "../layers/memory.ts"
import { passingTime } from "./cluster.ts"

const Text = Schema.Struct({ text: Schema.String })

/** Writes down what happens, in order. */
const makeLog = () => {
  const entries: Array<string> = []
  return {
    entries,
    say: (entry: string) => Effect.sync(() => void entries.push(entry)),
    /** Says that it started, and when its scope closes, that it stopped. */
    held: (what: string) =>
      Effect.acquireRelease(
        Effect.sync(() => void entries.push(`+${what}`)),
        () => Effect.sync(() => void entries.push(`-${what}`))
      ),
    clear: Effect.sync(() => void entries.splice(0))
  }
}

/** Starts a host in a scope of its own. */
const startHost = <const Plugins extends ReadonlyArray<Plugin.Any>>(plugins: Plugins) =>
  Effect.gen(function* () {
    const scope = yield* Effect.acquireRelease(Scope.make(), (scope) => passingTime(Scope.close(scope, Exit.void)))
    const host = yield* Scope.provide(PluginHost.make(plugins), scope)
    return { host, stop: Scope.close(scope, Exit.void) }
  })

const startError = <const Plugins extends ReadonlyArray<Plugin.Any>>(plugins: Plugins) =>
  Effect.scoped(Effect.flip(PluginHost.make(plugins)))

describe("starting", () => {
  it.effect("every beforeLoad runs before any load, in dependency order, otherwise in the order given", () =>
    Effect.gen(function* () {
      const { entries, say } = makeLog()
      const plugin = <const Name extends string>(name: Name, dependsOn: ReadonlyArray<string> = []) =>
        Plugin.make(name, { dependsOn, beforeLoad: say(`before ${name}`), load: say(`load ${name}`) })
      const { host } = yield* startHost([
        plugin("d", ["c", "b"]),
        plugin("x"),
        plugin("c", ["a"]),
        plugin("b", ["a"]),
        plugin("a")
      ])
      const order = ["a", "c", "b", "d", "x"]
      assert.deepStrictEqual(entries, [
        ...order.map((name) => `before ${name}`),
        ...order.map((name) => `load ${name}`)
      ])
      assert.deepStrictEqual(
        (yield* host.plugins).map(({ name }) => name),
        order
      )
    })
  )

  it.effect("a beforeLoad that takes its time is waited for", () =>
    Effect.gen(function* () {
      const { entries, say } = makeLog()
      const slow = Plugin.make("slow", { beforeLoad: Effect.delay(say("before slow"), "1 minute") })
      const quick = Plugin.make("quick", { beforeLoad: say("before quick"), load: say("load quick") })
      const starting = yield* Effect.forkScoped(PluginHost.make([slow, quick]))
      yield* TestClock.adjust("59 seconds")
      assert.deepStrictEqual(entries, [])
      yield* TestClock.adjust("1 second")
      yield* Fiber.join(starting)
      assert.deepStrictEqual(entries, ["before slow", "before quick", "load quick"])
    })
  )

  it.effect("a dependency may be given as the plugin itself", () =>
    Effect.gen(function* () {
      const { entries, say } = makeLog()
      const base = Plugin.make("base", { load: say("base") })
      const user = Plugin.make("user", { dependsOn: [base], load: say("user") })
      yield* startHost([user, base])
      assert.deepStrictEqual(entries, ["base", "user"])
    })
  )

  it.effect("sync messages are subscribed to before beforeLoad runs", () =>
    Effect.gen(function* () {
      const backend = yield* memory.make
      const [here, there] = [yield* backend.instance(), yield* backend.instance()]
      const { entries, say } = makeLog()
      const Changed = SyncMessage.make("p", Text, { debounce: 0 })
      yield* there.run(SyncMessage.publish(Changed, { text: "makes the sender known" }))
      const plugin = Plugin.make("p", {
        sync: { message: Changed, handle: ({ text }) => say(`handled ${text}`), resync: say("resynced") },
        // Nothing else can tell what is published here: the next load would miss it.
        beforeLoad: Effect.gen(function* () {
          yield* say("before")
          yield* there.run(SyncMessage.publish(Changed, { text: "during beforeLoad" }))
          yield* Effect.yieldNow
        })
      })
      yield* here.run(PluginHost.make([plugin]))
      yield* TestClock.adjust("1 second")
      assert.includeMembers(entries, ["before", "handled during beforeLoad"])
      assert.strictEqual(entries[0], "before")
    }).pipe(Effect.scoped)
  )

  it.effect("PluginHost.layer gives the plugins what they require, and offers the host", () =>
    Effect.gen(function* () {
      const { entries, say } = makeLog()
      class Greeting extends Context.Service<Greeting, string>()("test/Greeting") {}
      const plugin = Plugin.make("greets", { load: Effect.flatMap(Greeting, say) })
      const layer = PluginHost.layer([plugin]).pipe(Layer.provide(Layer.succeed(Greeting, "hello")))
      const plugins = yield* Effect.provide(
        PluginHost.PluginHost.use((host) => host.plugins),
        layer
      )
      assert.deepStrictEqual(entries, ["hello"])
      assert.deepStrictEqual(plugins, [{ name: "greets", enabled: true, dependsOn: [] }])
    })
  )
})

describe("a declaration that cannot be run is a clear error at start, and nothing has run", () => {
  const refused = <const Plugins extends ReadonlyArray<Plugin.Any>>(
    make: (say: (entry: string) => Effect.Effect<void>) => Plugins,
    message: string
  ) =>
    Effect.gen(function* () {
      const { entries, say } = makeLog()
      const error = yield* startError(make(say))
      assert.instanceOf(error, PluginHost.PluginError)
      assert.strictEqual(error._tag, "PluginError")
      assert.strictEqual(error.phase, "start")
      assert.strictEqual(error.reason, "Invalid")
      assert.strictEqual(error.message, message)
      assert.deepStrictEqual(entries, [])
    })

  it.effect("a cycle names every plugin on it", () =>
    refused(
      (say) => [
        Plugin.make("outside", { dependsOn: ["a"], load: say("outside") }),
        Plugin.make("a", { dependsOn: ["b"], beforeLoad: say("a") }),
        Plugin.make("b", { dependsOn: ["c"], beforeLoad: say("b") }),
        Plugin.make("c", { dependsOn: ["a"], beforeLoad: say("c") })
      ],
      `plugin "a", start: depends on itself: a → b → c → a`
    )
  )

  it.effect("a plugin that depends on itself is a cycle of one", () =>
    refused(
      (say) => [Plugin.make("a", { dependsOn: ["a"], load: say("a") })],
      `plugin "a", start: depends on itself: a → a`
    )
  )

  it.effect("a name used twice", () =>
    refused(
      (say) => [
        Plugin.make("a", { load: say("first") }),
        Plugin.make("b", { load: say("b") }),
        Plugin.make("a", { load: say("second") })
      ],
      `plugin "a", start: declared twice`
    )
  )

  it.effect("a missing dependency", () =>
    refused(
      (say) => [Plugin.make("a", { load: say("a") }), Plugin.make("b", { dependsOn: ["a", "nobody"], load: say("b") })],
      `plugin "b", start: depends on "nobody", which is not there`
    )
  )

  it.effect("an empty name", () =>
    refused((say) => [Plugin.make("", { load: say("nameless") })], `plugin "", start: name: must not be empty`)
  )

  it.effect("a name that is too long", () =>
    Effect.gen(function* () {
      const error = yield* startError([Plugin.make("x".repeat(1_025), {})])
      assert.strictEqual(error.reason, "Invalid")
      assert.include(error.message, "at most 1024 characters")
    })
  )
})

describe("a plugin that fails to start", () => {
  for (const phase of ["beforeLoad", "load"] as const) {
    it.effect(`names itself and its phase, and what had started is released: ${phase}`, () =>
      Effect.gen(function* () {
        const { entries, held } = makeLog()
        const base = Plugin.make("base", { beforeLoad: held("base"), load: held("base's load") })
        const broken = Plugin.make("broken", {
          dependsOn: [base],
          [phase]: Effect.andThen(held("broken"), Effect.fail(new Error("no disk\nand more")))
        })
        const never = Plugin.make("never", { dependsOn: [broken], beforeLoad: held("never"), load: held("never") })
        const error = yield* startError(phase === "beforeLoad" ? [never, broken, base] : [broken, base])
        assert.strictEqual(error.plugin, "broken")
        assert.strictEqual(error.phase, phase)
        assert.strictEqual(error.reason, "Failed")
        assert.strictEqual(error.message, `plugin "broken", ${phase}: no disk`)
        assert.strictEqual((error.cause as Error).message, "no disk\nand more")
        assert.deepStrictEqual(
          entries,
          phase === "beforeLoad"
            ? ["+base", "+broken", "-broken", "-base"]
            : ["+base", "+base's load", "+broken", "-broken", "-base's load", "-base"]
        )
      })
    )
  }

  it.effect("a defect, or an interruption of its own, is a failure as well", () =>
    Effect.gen(function* () {
      const thrown = yield* startError([
        Plugin.make("throws", {
          load: Effect.sync(() => {
            throw new TypeError("x is not a function")
          })
        })
      ])
      assert.strictEqual(thrown.message, `plugin "throws", load: x is not a function`)
      const stops = yield* startError([Plugin.make("stops", { beforeLoad: Effect.interrupt })])
      assert.strictEqual(stops.message, `plugin "stops", beforeLoad: interrupted itself`)
      const strange = yield* startError([Plugin.make("strange", { load: Effect.fail("just text") })])
      assert.strictEqual(strange.message, `plugin "strange", load: just text`)
    })
  )

  it.effect("a sync channel that cannot be subscribed to is its plugin's beforeLoad", () =>
    Effect.gen(function* () {
      const backend = yield* memory.make
      const app = yield* backend.instance()
      const bad = Plugin.make("bad", {
        sync: {
          message: SyncMessage.make("bad", Text, { debounce: -1 }),
          handle: () => Effect.void,
          resync: Effect.void
        }
      })
      const error = yield* app.run(startError([bad]))
      assert.strictEqual(error.plugin, "bad")
      assert.strictEqual(error.phase, "beforeLoad")
      assert.include(error.message, "debounce")
    })
  )

  it.effect("an interrupted start releases what had started, and is no plugin's failure", () =>
    Effect.gen(function* () {
      const { entries, held, say } = makeLog()
      const base = Plugin.make("base", { beforeLoad: held("base") })
      const hangs = Plugin.make("hangs", { dependsOn: [base], beforeLoad: held("hangs"), load: Effect.never })
      const after = Plugin.make("after", { load: say("after") })
      const starting = yield* Effect.forkChild(Effect.scoped(PluginHost.make([base, hangs, after])))
      yield* TestClock.adjust("1 minute")
      assert.deepStrictEqual(entries, ["+base", "+hangs"])
      yield* Fiber.interrupt(starting)
      assert.deepStrictEqual(entries, ["+base", "+hangs", "-hangs", "-base"])
      const exit = yield* Fiber.await(starting)
      assert.isTrue(Exit.hasInterrupts(exit))
      assert.isFalse(Exit.hasFails(exit))
    })
  )
})

describe("stopping", () => {
  it.effect("plugins stop in reverse order, each in reverse of what it acquired", () =>
    Effect.gen(function* () {
      const { clear, entries, held } = makeLog()
      const plugin = <const Name extends string>(name: Name, dependsOn: ReadonlyArray<string> = []) =>
        Plugin.make(name, { dependsOn, beforeLoad: held(`${name}.beforeLoad`), load: held(`${name}.load`) })
      const { stop } = yield* startHost([plugin("c", ["b"]), plugin("b", ["a"]), plugin("a")])
      yield* clear
      yield* stop
      assert.deepStrictEqual(entries, [
        "-c.load",
        "-c.beforeLoad",
        "-b.load",
        "-b.beforeLoad",
        "-a.load",
        "-a.beforeLoad"
      ])
    })
  )

  it.effect("a finalizer that dies does not keep the others from running", () =>
    Effect.gen(function* () {
      const { entries, held } = makeLog()
      const base = Plugin.make("base", { load: held("base") })
      const dies = Plugin.make("dies", {
        dependsOn: [base],
        load: Effect.andThen(
          held("dies"),
          Effect.addFinalizer(() => Effect.die("stuck"))
        )
      })
      const top = Plugin.make("top", { dependsOn: [dies], load: held("top") })
      const { stop } = yield* startHost([base, dies, top])
      const exit = yield* Effect.exit(stop)
      assert.deepStrictEqual(entries, ["+base", "+dies", "+top", "-top", "-dies", "-base"])
      assert.isTrue(Exit.hasDies(exit))
    })
  )

  it.effect("subscriptions end, jobs drain and leases are released before the layers below close", () =>
    Effect.gen(function* () {
      const { clear, entries, held, say } = makeLog()
      const hub = yield* MemoryHub.make
      const names = Plugin.namespace("worker")
      const Word = names.topic("word", Text)
      const Work = names.job("work", Text)

      /** What the plugin stands on: says when it closes. */
      class Probe extends Context.Service<Probe, { readonly isOpen: () => boolean }>()("test/Probe") {}
      const probe = Layer.effect(
        Probe,
        Effect.gen(function* () {
          let open = true
          yield* Effect.addFinalizer(() =>
            Effect.andThen(
              say("layer below closes"),
              Effect.sync(() => {
                open = false
              })
            )
          )
          return { isOpen: () => open }
        })
      )

      const worker = Plugin.make("worker", {
        load: Effect.gen(function* () {
          const probe = yield* Probe
          yield* PubSub.subscribe(Word, ({ text }) => say(`heard ${text}`))
          yield* Lock.acquire(names.key("leader"))
          yield* EventQueue.subscribe(Work, {
            process: ({ text }) =>
              Effect.gen(function* () {
                yield* say(`works on ${text}`)
                yield* Effect.sleep("10 seconds")
                yield* say(`finished ${text}, layer ${probe.isOpen() ? "open" : "closed"}`)
              })
          })
        })
      })
      const above = Plugin.make("above", { dependsOn: [worker], load: held("above") })

      const other = yield* Layer.build(Cohort.layerMemory({ app: "test", id: "other", hub }))
      const scope = yield* Scope.make()
      yield* Layer.buildWithScope(
        PluginHost.layer([above, worker]).pipe(
          Layer.provide(probe),
          Layer.provide(Cohort.layerMemory({ app: "test", id: "this", hub }))
        ),
        scope
      )
      const waiting = yield* Lock.runExclusive(names.key("leader"), say("lease is free")).pipe(
        Effect.provide(other),
        Effect.forkChild
      )
      yield* Effect.provide(EventQueue.publish(Work, { text: "one" }), other)
      yield* Effect.provide(EventQueue.publish(Work, { text: "two" }), other)
      yield* TestClock.adjust("1 second")
      assert.deepStrictEqual(entries, ["+above", "works on one"])
      yield* clear

      const closing = yield* Effect.forkChild(Scope.close(scope, Exit.void))
      yield* TestClock.adjust("9 seconds")
      yield* Fiber.join(closing)
      yield* Fiber.join(waiting)
      yield* Effect.provide(PubSub.publish(Word, { text: "too late" }), other)
      yield* TestClock.adjust("1 minute")
      const released = entries.indexOf("lease is free")
      assert.deepStrictEqual(
        entries.filter((entry) => entry !== "lease is free"),
        ["-above", "finished one, layer open", "layer below closes"]
      )
      assert.isAbove(released, entries.indexOf("finished one, layer open"))
      // The second job was not taken while draining: another instance has it.
      const depth = yield* Effect.provide(EventQueue.depth(Work), other)
      assert.deepStrictEqual(depth, { ready: 1, delayed: 0, inFlight: 0, dead: 0 })
    }).pipe(Effect.scoped)
  )

  it.effect("a plugin that is just being disabled has ended before those below it stop", () =>
    Effect.gen(function* () {
      const { entries, held } = makeLog()
      const base = Plugin.make("base", { load: held("base") })
      const slow = Plugin.make("slow", {
        dependsOn: [base],
        load: Effect.andThen(
          held("slow"),
          Effect.addFinalizer(() => Effect.sleep("10 seconds"))
        )
      })
      const { host, stop } = yield* startHost([base, slow])
      const disabling = yield* Effect.forkChild(host.disable("slow"))
      yield* TestClock.adjust("1 second")
      const stopping = yield* Effect.forkChild(stop)
      yield* TestClock.adjust("8 seconds")
      assert.deepStrictEqual(entries, ["+base", "+slow"])
      yield* TestClock.adjust("1 second")
      yield* Fiber.join(disabling)
      yield* Fiber.join(stopping)
      assert.deepStrictEqual(entries, ["+base", "+slow", "-slow", "-base"])
    })
  )

  it.effect("a host that has stopped enables nothing", () =>
    Effect.gen(function* () {
      const { entries, held } = makeLog()
      const { host, stop } = yield* startHost([Plugin.make("a", { load: held("a") })])
      yield* stop
      const error = yield* Effect.flip(host.enable("a"))
      assert.strictEqual(error.reason, "Refused")
      assert.deepStrictEqual(entries, ["+a", "-a"])
    })
  )

  it.effect("a host that stops while a plugin is being enabled leaves nothing of it", () =>
    Effect.gen(function* () {
      const { clear, entries, held, say } = makeLog()
      let pause = Effect.void
      const plugin = Plugin.make("slow", {
        beforeLoad: Effect.andThen(
          held("slow"),
          Effect.suspend(() => pause)
        ),
        load: Effect.andThen(held("slow's load"), say("loaded"))
      })
      const { host, stop } = yield* startHost([plugin])
      yield* host.disable("slow")
      yield* clear
      pause = Effect.sleep("1 minute")
      const enabling = yield* Effect.forkChild(Effect.exit(host.enable("slow")))
      yield* TestClock.adjust("1 second")
      const stopping = yield* Effect.forkChild(stop)
      yield* TestClock.adjust("2 minutes")
      yield* Fiber.join(stopping)
      assert.isTrue(Exit.isFailure(yield* Fiber.join(enabling)))
      assert.deepStrictEqual(entries, ["+slow", "-slow"])
    })
  )
})

describe("disabling and enabling while the host runs", () => {
  it.effect("everything a plugin holds goes when it is disabled, and comes back when it is enabled", () =>
    Effect.gen(function* () {
      const backend = yield* memory.make
      const [here, there] = [yield* backend.instance(), yield* backend.instance()]
      const { clear, entries, held, say } = makeLog()
      const names = Plugin.namespace("worker")
      const Word = names.topic("word", Text)
      const Work = names.job("work", Text)
      const Changed = names.sync(Text, { debounce: 0 })
      const worker = Plugin.make(names.name, {
        sync: { message: Changed, handle: ({ text }) => say(`synced ${text}`), resync: Effect.void },
        beforeLoad: held("beforeLoad"),
        load: Effect.gen(function* () {
          yield* PubSub.subscribe(Word, ({ text }) => say(`heard ${text}`))
          yield* Lock.acquire(names.key("leader"))
          yield* EventQueue.subscribe(Work, {
            process: ({ text }) => Effect.delay(say(`finished ${text}`), "10 seconds")
          })
          yield* Effect.forkScoped(Effect.forever(Effect.delay(say("tick"), "20 seconds")))
        })
      })
      const { host } = yield* here.run(startHost([worker]))
      const isFree = there.run(
        Effect.scoped(Effect.map(Lock.tryAcquire(names.key("leader")), (lease) => Option.isSome(lease)))
      )
      const enabled = Effect.map(host.plugins, ([plugin]) => plugin!.enabled)
      const speak = (text: string) =>
        there.run(
          Effect.all([
            PubSub.publish(Word, { text }),
            SyncMessage.publish(Changed, { text }),
            EventQueue.publish(Work, { text })
          ])
        )

      assert.isTrue(yield* enabled)
      assert.isFalse(yield* isFree)
      yield* speak("one")
      yield* TestClock.adjust("1 second")
      assert.sameMembers(entries, ["+beforeLoad", "heard one", "synced one"])
      yield* clear

      // The worker drains: disabling waits for the job it has.
      const disabling = yield* Effect.forkChild(host.disable("worker"))
      yield* TestClock.adjust("8 seconds")
      assert.deepStrictEqual(entries, [])
      yield* TestClock.adjust("1 second")
      yield* Fiber.join(disabling)
      assert.deepStrictEqual(entries, ["finished one", "-beforeLoad"])
      assert.isFalse(yield* enabled)
      assert.isTrue(yield* isFree)
      yield* clear
      yield* speak("two")
      yield* TestClock.adjust("1 minute")
      assert.deepStrictEqual(entries, [])
      assert.strictEqual((yield* there.run(EventQueue.depth(Work))).ready, 1)

      yield* host.enable("worker")
      assert.isTrue(yield* enabled)
      assert.isFalse(yield* isFree)
      yield* speak("three")
      yield* TestClock.adjust("10 seconds")
      assert.includeMembers(entries, ["+beforeLoad", "heard three", "synced three", "finished two"])
      assert.notInclude(entries, "heard two")
    })
  )

  it.effect("enabling runs beforeLoad and then load, and the next stop releases it in order", () =>
    Effect.gen(function* () {
      const { clear, entries, held } = makeLog()
      const plugin = <const Name extends string>(name: Name, dependsOn: ReadonlyArray<string> = []) =>
        Plugin.make(name, { dependsOn, beforeLoad: held(`${name}.beforeLoad`), load: held(`${name}.load`) })
      const { host, stop } = yield* startHost([plugin("a"), plugin("b")])
      yield* host.disable("a")
      yield* clear
      yield* host.enable("a")
      assert.deepStrictEqual(entries, ["+a.beforeLoad", "+a.load"])
      yield* clear
      yield* stop
      assert.deepStrictEqual(entries, ["-b.load", "-b.beforeLoad", "-a.load", "-a.beforeLoad"])
    })
  )

  it.effect("disabling what others depend on is refused, until they are disabled", () =>
    Effect.gen(function* () {
      const { clear, entries, held } = makeLog()
      const base = Plugin.make("base", { load: held("base") })
      const one = Plugin.make("one", { dependsOn: [base], load: held("one") })
      const two = Plugin.make("two", { dependsOn: [base], load: held("two") })
      const { host } = yield* startHost([base, one, two])
      yield* clear
      const error = yield* Effect.flip(host.disable("base"))
      assert.strictEqual(error.reason, "Refused")
      assert.strictEqual(error.phase, "disable")
      assert.strictEqual(error.plugin, "base")
      assert.include(error.message, `"one", "two"`)
      assert.deepStrictEqual(entries, [])
      yield* host.disable("one")
      yield* host.disable("two")
      yield* host.disable("base")
      assert.deepStrictEqual(entries, ["-one", "-two", "-base"])
    })
  )

  it.effect("enabling needs the dependencies enabled", () =>
    Effect.gen(function* () {
      const { clear, entries, held } = makeLog()
      const base = Plugin.make("base", { load: held("base") })
      const user = Plugin.make("user", { dependsOn: [base], load: held("user") })
      const { host } = yield* startHost([base, user])
      yield* host.disable("user")
      yield* host.disable("base")
      yield* clear
      const error = yield* Effect.flip(host.enable("user"))
      assert.strictEqual(error.reason, "Refused")
      assert.strictEqual(error.phase, "enable")
      assert.include(error.message, `plugin "user", enable: needs "base"`)
      assert.deepStrictEqual(entries, [])
      yield* host.enable("base")
      yield* host.enable("user")
      assert.deepStrictEqual(entries, ["+base", "+user"])
    })
  )

  it.effect("a failing enable leaves the plugin disabled and nothing held, and can be tried again", () =>
    Effect.gen(function* () {
      const { clear, entries, held } = makeLog()
      let broken = false
      const plugin = Plugin.make("p", {
        beforeLoad: held("beforeLoad"),
        load: Effect.andThen(
          held("load"),
          Effect.suspend(() => (broken ? Effect.fail("no disk") : Effect.void))
        )
      })
      const { host } = yield* startHost([plugin])
      yield* host.disable("p")
      yield* clear
      broken = true
      const error = yield* Effect.flip(host.enable("p"))
      assert.strictEqual(error.message, `plugin "p", load: no disk`)
      assert.strictEqual(error.reason, "Failed")
      assert.deepStrictEqual(entries, ["+beforeLoad", "+load", "-load", "-beforeLoad"])
      assert.deepStrictEqual(yield* host.plugins, [{ name: "p", enabled: false, dependsOn: [] }])
      broken = false
      yield* clear
      yield* host.enable("p")
      assert.deepStrictEqual(entries, ["+beforeLoad", "+load"])
      assert.isTrue((yield* host.plugins)[0]!.enabled)
    })
  )

  it.effect("an interrupted enable leaves the plugin disabled and nothing held", () =>
    Effect.gen(function* () {
      const { clear, entries, held } = makeLog()
      let hangs = false
      const plugin = Plugin.make("p", {
        beforeLoad: held("p"),
        load: Effect.suspend(() => (hangs ? Effect.never : Effect.void))
      })
      const { host } = yield* startHost([plugin])
      yield* host.disable("p")
      yield* clear
      hangs = true
      const enabling = yield* Effect.forkChild(host.enable("p"))
      yield* TestClock.adjust("1 minute")
      yield* Fiber.interrupt(enabling)
      assert.deepStrictEqual(entries, ["+p", "-p"])
      assert.isFalse((yield* host.plugins)[0]!.enabled)
    })
  )

  it.effect("enabling what is enabled, and disabling what is disabled, does nothing", () =>
    Effect.gen(function* () {
      const { entries, held } = makeLog()
      const { host } = yield* startHost([Plugin.make("p", { load: held("p") })])
      yield* host.enable("p")
      assert.deepStrictEqual(entries, ["+p"])
      yield* host.disable("p")
      yield* host.disable("p")
      assert.deepStrictEqual(entries, ["+p", "-p"])
    })
  )

  it.effect("a plugin that is not there is a clear error", () =>
    Effect.gen(function* () {
      const { host } = yield* startHost([])
      for (const phase of ["enable", "disable"] as const) {
        const error = yield* Effect.flip(host[phase]("nobody"))
        assert.strictEqual(error.reason, "Refused")
        assert.strictEqual(error.message, `plugin "nobody", ${phase}: there is no such plugin`)
      }
    })
  )

  it.effect("changes come one after the other", () =>
    Effect.gen(function* () {
      const { clear, entries, held } = makeLog()
      const slow = Plugin.make("slow", {
        load: Effect.andThen(
          held("slow"),
          Effect.addFinalizer(() => Effect.sleep("10 seconds"))
        )
      })
      const { host, stop } = yield* startHost([slow])
      yield* clear
      const disabling = yield* Effect.forkChild(host.disable("slow"))
      yield* TestClock.adjust("1 second")
      const enabling = yield* Effect.forkChild(host.enable("slow"))
      yield* TestClock.adjust("1 second")
      assert.deepStrictEqual(entries, [])
      yield* TestClock.adjust("8 seconds")
      yield* Fiber.join(disabling)
      yield* Fiber.join(enabling)
      assert.deepStrictEqual(entries, ["-slow", "+slow"])
      const stopping = yield* Effect.forkChild(stop)
      yield* TestClock.adjust("10 seconds")
      yield* Fiber.join(stopping)
    })
  )
})

describe("what a plugin names carries its name", () => {
  it.effect("two plugins that use the same topic, job, lock and cache names never meet", () =>
    Effect.gen(function* () {
      const backend = yield* memory.make
      const [here, there] = [yield* backend.instance(), yield* backend.instance()]
      const { entries, say } = makeLog()
      const make = <const Name extends string>(name: Name) => {
        const names = Plugin.namespace(name)
        return {
          names,
          Word: names.topic("same", Text),
          Work: names.job("same", Text),
          Changed: names.sync(Text, { debounce: 0 })
        }
      }
      const declared = [make("a"), make("b")] as const
      const plugins = declared.map(({ Changed, Word, Work, names }) =>
        Plugin.make(names.name, {
          sync: {
            message: Changed,
            handle: ({ text }) => say(`${names.name} synced ${text}`),
            resync: Effect.void
          },
          load: Effect.gen(function* () {
            yield* PubSub.subscribe(Word, ({ text }) => say(`${names.name} heard ${text}`))
            yield* EventQueue.subscribe(Work, { process: ({ text }) => say(`${names.name} ran ${text}`) })
            // The other plugin's lock of this name is another lock: nobody waits here.
            yield* Lock.acquire(names.key("same"))
            const cache = yield* names.cache("same", Schema.String)
            assert.isTrue(Option.isNone(yield* cache.get("key")))
            yield* cache.set("key", names.name)
          })
        })
      )
      yield* here.run(PluginHost.make(plugins))
      for (const { Changed, Word, Work, names } of declared) {
        yield* there.run(PubSub.publish(Word, { text: `${names.name}'s` }))
        yield* there.run(SyncMessage.publish(Changed, { text: `${names.name}'s` }))
        // As many as would fall to the wrong one, were there only one queue.
        for (let i = 0; i < 4; i++) yield* there.run(EventQueue.publish(Work, { text: `${names.name}'s` }))
      }
      yield* TestClock.adjust("1 second")
      assert.sameMembers(
        [...new Set(entries)],
        ["a", "b"].flatMap((name) => ["heard", "synced", "ran"].map((verb) => `${name} ${verb} ${name}'s`))
      )
      for (const { names } of declared) {
        const cache = yield* there.run(names.cache("same", Schema.String))
        assert.deepStrictEqual(yield* cache.get("key"), Option.some(names.name))
      }
    })
  )

  it("names that would run together stay apart", () => {
    const [a, ab] = [Plugin.namespace("a"), Plugin.namespace("a:b")]
    assert.notStrictEqual(a.key("b:c"), ab.key("c"))
    assert.notStrictEqual(a.topic("b:c", Text).channel, ab.topic("c", Text).channel)
    assert.notStrictEqual(a.job("b:c", Text).channel, ab.job("c", Text).channel)
    assert.strictEqual(a.key("word"), "a:word")
  })

  it.effect("an empty name is refused where it is used, as without a plugin", () =>
    Effect.gen(function* () {
      const app = yield* Effect.flatMap(memory.make, (backend) => backend.instance())
      const names = Plugin.namespace("p")
      const failures = [
        yield* Effect.flip(app.run(PubSub.publish(names.topic("", Text), { text: "" }))),
        yield* Effect.flip(app.run(EventQueue.publish(names.job("", Text), { text: "" }))),
        yield* Effect.flip(app.run(names.cache("", Text)))
      ]
      for (const { reason } of failures) assert.strictEqual(reason._tag, "InvalidInput")
    })
  )
})
