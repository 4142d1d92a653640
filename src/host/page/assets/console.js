/** Looks once a second, and draws what it sees. */
import { chart } from "./chart.js"
import { $, clock, h, kept, seconds, table } from "./dom.js"
import { compare, isSilent, note } from "./events.js"
import * as letters from "./letters.js"
import { allow, onChange } from "./token.js"

const within = (id) => document.querySelector(`#${id} > div`)
let state
let before

const instances = table(
  within("instances"),
  "Instances",
  [
    ["Id", ({ id }) => (id === state.instance ? `${id} (this one)` : id), "code"],
    ["State", (member) => (isSilent(state, member) ? ["silent", "bad"] : ["alive", "good"])],
    ["Version", ({ version }) => version],
    ["Worker mode", ({ workerMode }) => workerMode || "everything"],
    ["Plugins", ({ plugins }) => plugins.join(", ")],
    ["Up", ({ startedAt }) => seconds(state.at - startedAt), "number"],
    ["Last seen", ({ lastSeen }) => `${seconds(state.at - lastSeen)} ago`, "number"]
  ],
  ({ id }) => id,
  "None"
)

const depth = (name) => [({ depth }) => (depth.error ? ["?", "bad"] : depth.value[name]), "number"]
const inspect = kept((channel) =>
  h(
    "button",
    { click: () => letters.inspect(channel), "aria-label": `Inspect the dead letters of ${channel}` },
    "Inspect"
  )
)
const chartOf = kept((key) => chart(`${key} per second`))
const rates = new Map()
const rateOf = (key, count) => {
  const last = rates.get(key)
  rates.set(key, { count, at: state.at })
  const rate =
    last === undefined || state.at <= last.at ? 0 : Math.max(0, ((count - last.count) * 1_000) / (state.at - last.at))
  chartOf(key).add(Math.round(rate * 10) / 10)
}
const channels = table(
  within("channels"),
  "Channels",
  [
    ["Channel", ({ channel }) => channel, "code"],
    ["Ready", ...depth("ready")],
    ["Delayed", ...depth("delayed")],
    ["In flight", ...depth("inFlight")],
    [
      "Dead",
      ({ depth }) => (depth.error ? ["?", "bad"] : [depth.value.dead, depth.value.dead > 0 ? "bad" : ""]),
      "number"
    ],
    [
      "Served by",
      ({ depth, servedBy }) =>
        depth.error
          ? [depth.error, "bad"]
          : servedBy.length > 0
            ? servedBy.join(", ")
            : ["nobody", depth.value.ready > 0 ? "bad" : "warn"]
    ],
    ["Published/s", ({ channel }) => chartOf(`${channel} published`).element],
    ["Attempts ended/s", ({ channel }) => chartOf(`${channel} ended`).element],
    ["", ({ channel, depth }) => (depth.value?.dead > 0 ? inspect(channel) : "")]
  ],
  ({ channel }) => channel,
  "None was used yet"
)

const locks = table(
  within("locks"),
  "Locks",
  [
    ["Key", ({ key }) => key, "code"],
    [
      "Holder",
      ({ holder }) => (state.members.some(({ id }) => id === holder) ? holder : [`${holder} (no member)`, "warn"])
    ],
    ["Fence", ({ fence }) => fence, "number"],
    ["Ends within", ({ ttl }) => seconds(ttl), "number"],
    [
      "Waiters",
      ({ waiters }) =>
        waiters.map(({ count, instance }) => (count === 1 ? instance : `${instance} (${count})`)).join(", ")
    ]
  ],
  ({ key }) => key,
  "No lock is held"
)

const caches = table(
  within("caches"),
  "Caches",
  [
    ["Cache", ({ name }) => name, "code"],
    ["Hits", ({ hits }) => hits, "number"],
    ["Misses", ({ misses }) => misses, "number"],
    [
      "Hit rate",
      ({ hits, misses }) => (hits + misses === 0 ? "–" : `${((100 * hits) / (hits + misses)).toFixed(1)} %`),
      "number"
    ],
    ["Look-ups/s", ({ name }) => chartOf(`${name} look-ups`).element]
  ],
  ({ name }) => name,
  "None was asked yet"
)

const sync = table(
  within("sync"),
  "Sync channels",
  [
    ["Channel", ({ channel }) => channel, "code"],
    ["Sent", ({ sent }) => sent, "number"],
    [
      "Heard, by instance",
      ({ last }) =>
        Object.entries(last)
          .map(([id, n]) => `${id}: ${n}`)
          .join(", ") || "–"
    ],
    [
      "State",
      ({ resync }) =>
        resync === null
          ? ["in sync", "good"]
          : resync.failures > 0
            ? [`resync fails since ${clock(resync.since)} (${resync.failures}×): ${resync.lastError ?? ""}`, "bad"]
            : [`resync since ${clock(resync.since)}`, "warn"]
    ]
  ],
  ({ channel }) => channel,
  "None"
)

const health = table(
  within("health"),
  "Health",
  [
    ["Component", ({ component }) => component, "code"],
    ["Status", ({ status }) => [status, status]],
    ["Why", ({ detail }) => detail ?? ""]
  ],
  ({ component }) => component,
  "No component has a check"
)

const tileOf = kept((name) => h("li", {}, h("b"), name))
const tile = (name, value, kind = "") => {
  const element = tileOf(name)
  if (element.firstChild.textContent !== String(value)) element.firstChild.textContent = String(value)
  element.className = kind
  if (element.parentNode === null) $("tiles").append(element)
}

const draw = () => {
  $("app").textContent = state.app
  document.title = `${state.app} – Cohort`
  $("whose").textContent = `as instance ${state.instance} sees it`
  for (const { channel, consumed, sent } of state.channels) {
    rateOf(`${channel} published`, sent)
    rateOf(`${channel} ended`, consumed)
  }
  for (const { hits, misses, name } of state.caches) rateOf(`${name} look-ups`, hits + misses)
  instances(state.members)
  channels(state.channels)
  locks(state.locks.value ?? [])
  caches(state.caches)
  sync(state.sync)
  health(state.health.components)
  letters.update(state.channels)

  const sum = (name) => state.channels.reduce((total, { depth }) => total + (depth.value?.[name] ?? 0), 0)
  const silent = state.members.filter((member) => isSilent(state, member)).length
  tile("instances", state.members.length, silent > 0 ? "bad" : "")
  tile("jobs ready", sum("ready"))
  tile("jobs in flight", sum("inFlight"))
  tile("dead letters", sum("dead"), sum("dead") > 0 ? "bad" : "")
  tile("locks held", state.locks.error ? "?" : state.locks.value.length, state.locks.error ? "bad" : "")
  tile("alarms", state.alarms.length, state.alarms.length > 0 ? "bad" : "")
  tile(
    "this instance",
    state.health.ready ? "ready" : state.health.live ? "not ready" : "failed",
    state.health.ready ? "good" : "bad"
  )
}

const connection = (text, kind) => {
  if ($("connection").textContent === text) return
  $("connection").textContent = text
  $("connection").className = `chip ${kind}`
}

const look = async () => {
  try {
    const response = await fetch("console/api/state", { signal: AbortSignal.timeout(8_000) })
    if (!response.ok) throw new Error(`status ${response.status}`)
    before = state
    state = await response.json()
    allow(state.actions)
    compare(before, state)
    draw()
    connection("live", "good")
  } catch (error) {
    if ($("connection").textContent !== "no answer") note(`the instance does not answer: ${error.message}`, "bad")
    connection("no answer", "bad")
  }
  setTimeout(look, 1_000)
}

onChange(letters.redraw)
look()
