/**
 * Runs plugins.
 *
 * Starting runs every `beforeLoad` in dependency order, then every `load` in the
 * same order. Stopping releases the plugins in reverse order, each in reverse of
 * what it acquired: subscriptions end, jobs drain, leases are released, and only
 * then do the services below close their connections.
 *
 * @since 0.1.0
 */
import * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import * as Scope from "effect/Scope"
import * as Semaphore from "effect/Semaphore"
import { Membership } from "./Membership.ts"
import type * as Plugin from "./Plugin.ts"

/**
 * A plugin that cannot be run as declared, or whose phase failed.
 *
 * - `Invalid`: its declaration is wrong (`detail` says how): an empty name, a name used twice, a
 *   dependency that is missing or goes round in a cycle.
 * - `Failed`: one of its phases failed; `cause` has the failure.
 * - `Refused`: it cannot be enabled or disabled while other plugins are as they are.
 *
 * @since 0.1.0
 */
export class PluginError extends Schema.TaggedError<PluginError>("cohort/PluginError")("PluginError", {
  plugin: Schema.String,
  phase: Schema.Literals(["start", "beforeLoad", "load", "enable", "disable"]),
  reason: Schema.Literals(["Invalid", "Failed", "Refused"]),
  detail: Schema.String,
  cause: Schema.optional(Schema.Defect())
}) {
  override get message(): string {
    return `plugin "${this.plugin}", ${this.phase}: ${this.detail}`
  }
}

/**
 * @since 0.1.0
 */
export interface PluginStatus {
  readonly name: string
  readonly enabled: boolean
  readonly dependsOn: ReadonlyArray<string>
}

/**
 * The plugins of this instance.
 *
 * @since 0.1.0
 */
export class PluginHost extends Context.Service<
  PluginHost,
  {
    /** In start order. */
    readonly plugins: Effect.Effect<ReadonlyArray<PluginStatus>>
    /** Runs the phases of a disabled plugin. Its dependencies must be enabled. Does nothing when it is enabled. */
    readonly enable: (name: string) => Effect.Effect<void, PluginError>
    /** Releases everything a plugin holds. No enabled plugin may depend on it. Does nothing when it is disabled. */
    readonly disable: (name: string) => Effect.Effect<void, PluginError>
  }
>()("cohort/services/PluginHost") {}

type RequirementsOf<P> = P extends Plugin.Plugin<string, any, infer R> ? R : never

/**
 * Starts plugins, and stops them with the layer. Requires what the plugins
 * require and nothing else.
 *
 * @since 0.1.0
 */
export const layer = <const Plugins extends ReadonlyArray<Plugin.Any>>(
  plugins: Plugins
): Layer.Layer<PluginHost, PluginError, RequirementsOf<Plugins[number]>> => Layer.effect(PluginHost, make(plugins))

/**
 * Like {@link layer}, as an Effect.
 *
 * @since 0.1.0
 */
export const make = <const Plugins extends ReadonlyArray<Plugin.Any>>(
  plugins: Plugins
): Effect.Effect<PluginHost["Service"], PluginError, RequirementsOf<Plugins[number]> | Scope.Scope> =>
  Effect.gen(function* () {
    const ordered = yield* inDependencyOrder(plugins)
    const context = yield* Effect.context<RequirementsOf<Plugins[number]> | Scope.Scope>()
    // Enabling, disabling and stopping, one at a time.
    const turn = yield* Semaphore.make(1)
    const stopping = yield* Deferred.make<void>()
    const scopes = new Map<string, Scope.Closeable>()

    const close = (plugin: Plugin.Any) =>
      Effect.suspend(() => {
        const scope = scopes.get(plugin.name)
        scopes.delete(plugin.name)
        return scope === undefined ? Effect.void : Scope.close(scope, Exit.void)
      })

    const run = (plugin: Plugin.Any, phase: "beforeLoad" | "load", scope: Scope.Scope) =>
      Effect.suspend(() => plugin[phase] as Effect.Effect<void, unknown, any>).pipe(
        Effect.annotateLogs({ plugin: plugin.name }),
        Scope.provide(scope),
        Effect.provideContext(context as Context.Context<any>),
        // Not the interruption of a start: that passes this by.
        Effect.catchCause((cause) =>
          Effect.fail(
            new PluginError({
              plugin: plugin.name,
              phase,
              reason: "Failed",
              detail: Cause.hasInterruptsOnly(cause) ? "interrupted itself" : firstLine(Cause.squash(cause)),
              cause: Cause.squash(cause)
            })
          )
        )
      )

    // In reverse: what started last stops first. Registered before anything starts,
    // so that a start that fails halfway is undone as well. One that cannot be released
    // does not keep the others.
    yield* Effect.addFinalizer(() =>
      Effect.forEach([...ordered].reverse(), (plugin) => Effect.exit(close(plugin))).pipe(
        Effect.flatMap(Exit.asVoidAll),
        turn.withPermit,
        // What is being enabled gives up its turn.
        (stop) => Effect.andThen(Deferred.succeed(stopping, undefined), stop)
      )
    )
    for (const plugin of ordered) {
      const scope = yield* Scope.make()
      scopes.set(plugin.name, scope)
      yield* run(plugin, "beforeLoad", scope)
    }
    for (const plugin of ordered) yield* run(plugin, "load", scopes.get(plugin.name)!)

    const membership = yield* Effect.serviceOption(Membership)
    const tellMembers = Option.isNone(membership)
      ? Effect.void
      : membership.value.plugins(Effect.sync(() => ordered.map(({ name }) => name).filter((name) => scopes.has(name))))
    yield* tellMembers

    const known = (name: string, phase: "enable" | "disable") => {
      const plugin = ordered.find((plugin) => plugin.name === name)
      return plugin === undefined
        ? Effect.fail(new PluginError({ plugin: name, phase, reason: "Refused", detail: "there is no such plugin" }))
        : Effect.succeed(plugin)
    }
    const refused = (plugin: Plugin.Any, phase: "enable" | "disable", detail: string) =>
      Effect.fail(new PluginError({ plugin: plugin.name, phase, reason: "Refused", detail }))

    return PluginHost.of({
      plugins: Effect.sync(() =>
        ordered.map(({ dependsOn, name }) => ({ name, dependsOn, enabled: scopes.has(name) }))
      ),
      enable: (name) =>
        turn.withPermit(
          Effect.flatMap(known(name, "enable"), (plugin) => {
            if (scopes.has(name)) return Effect.void
            const missing = plugin.dependsOn.filter((dependency) => !scopes.has(dependency))
            if (missing.length > 0) return refused(plugin, "enable", `needs ${quoted(missing)}, which is disabled`)
            const stopped = refused(plugin, "enable", "the host stops")
            if (Deferred.isDoneUnsafe(stopping)) return stopped
            return Effect.flatMap(Scope.make(), (scope) =>
              Effect.andThen(run(plugin, "beforeLoad", scope), run(plugin, "load", scope)).pipe(
                Effect.raceFirst(Effect.andThen(Deferred.await(stopping), stopped)),
                Effect.onExit((exit) =>
                  Exit.isSuccess(exit)
                    ? Effect.sync(() => scopes.set(plugin.name, scope))
                    : Scope.close(scope, Exit.void)
                ),
                Effect.andThen(tellMembers)
              )
            )
          })
        ),
      disable: (name) =>
        turn.withPermit(
          Effect.flatMap(known(name, "disable"), (plugin) => {
            const dependents = ordered.filter((other) => scopes.has(other.name) && other.dependsOn.includes(name))
            if (dependents.length > 0) {
              return refused(plugin, "disable", `${quoted(dependents.map((other) => other.name))} depends on it`)
            }
            return Effect.andThen(Effect.uninterruptible(close(plugin)), tellMembers)
          })
        )
    })
  }) as Effect.Effect<PluginHost["Service"], PluginError, RequirementsOf<Plugins[number]> | Scope.Scope>

/** Dependencies first; otherwise in the order given. */
const inDependencyOrder = (plugins: ReadonlyArray<Plugin.Any>): Effect.Effect<ReadonlyArray<Plugin.Any>, PluginError> =>
  Effect.suspend(() => {
    const invalid = (plugin: string, detail: string) =>
      Effect.fail(new PluginError({ plugin, phase: "start", reason: "Invalid", detail }))

    const byName = new Map<string, Plugin.Any>()
    for (const plugin of plugins) {
      if (plugin.invalid !== undefined) return invalid(plugin.name, plugin.invalid.message)
      if (byName.has(plugin.name)) return invalid(plugin.name, "declared twice")
      byName.set(plugin.name, plugin)
    }

    const ordered = new Set<Plugin.Any>()
    const path: Array<string> = []
    const visit = (plugin: Plugin.Any): Effect.Effect<never, PluginError> | undefined => {
      if (ordered.has(plugin)) return undefined
      if (path.includes(plugin.name)) {
        const cycle = [...path.slice(path.indexOf(plugin.name)), plugin.name]
        return invalid(plugin.name, `depends on itself: ${cycle.join(" → ")}`)
      }
      path.push(plugin.name)
      for (const name of plugin.dependsOn) {
        const dependency = byName.get(name)
        if (dependency === undefined) return invalid(plugin.name, `depends on "${name}", which is not there`)
        const failure = visit(dependency)
        if (failure !== undefined) return failure
      }
      path.pop()
      ordered.add(plugin)
      return undefined
    }
    for (const plugin of plugins) {
      const failure = visit(plugin)
      if (failure !== undefined) return failure
    }
    return Effect.succeed([...ordered])
  })

const quoted = (names: ReadonlyArray<string>): string => names.map((name) => `"${name}"`).join(", ")

const firstLine = (error: unknown): string =>
  (error instanceof Error ? error.message : String(error)).split("\n", 1)[0] ?? ""
