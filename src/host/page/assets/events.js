/** What happened: told by what differs between one look and the next, and by what the instance has logged. */
import { $, clock, h } from "./dom.js"

const kept = 200
let lastLogged = 0
const silent = new Set()

const tell = (at, text, kind = "") => {
  $("feed").prepend(h("li", { class: kind }, h("time", { datetime: new Date(at).toISOString() }, clock(at)), text))
  while ($("feed").children.length > kept) $("feed").lastChild.remove()
}
export const note = (text, kind) => tell(Date.now(), text, kind)

/** Whether an instance is late with telling that it is there. */
export const isSilent = (state, member) => state.at - member.lastSeen > 3_500

const byKey = (items, key) => new Map((items ?? []).map((item) => [item[key], item]))

export const compare = (before, now) => {
  // Another start of the instance numbers its log anew.
  if (before !== undefined && before.instance !== now.instance) {
    tell(now.at, `${now.instance} answers now, instead of ${before.instance}`, "warn")
    lastLogged = 0
  }
  for (const { about, at, level, number, text } of now.log) {
    if (number <= lastLogged) continue
    lastLogged = number
    tell(at, about === "" ? text : `${text} (${about})`, level === "Warn" ? "warn" : "bad")
  }
  for (const member of now.members) {
    if (isSilent(now, member) === silent.has(member.id)) continue
    if (silent.delete(member.id)) tell(now.at, `instance ${member.id} is heard of again`, "good")
    else {
      silent.add(member.id)
      tell(now.at, `instance ${member.id} is silent`, "warn")
    }
  }
  if (before === undefined) return
  const members = byKey(now.members, "id")
  const known = byKey(before.members, "id")
  for (const id of members.keys()) if (!known.has(id)) tell(now.at, `instance ${id} came`, "good")
  for (const id of known.keys()) {
    if (members.has(id)) continue
    tell(now.at, `instance ${id} went${silent.has(id) ? " without a word" : ""}`, silent.delete(id) ? "bad" : "")
  }
  const channels = byKey(before.channels, "channel")
  for (const { channel, depth } of now.channels) {
    const was = channels.get(channel)?.depth.value?.dead
    const dead = depth.value?.dead
    if (was === undefined || dead === undefined || dead === was) continue
    if (dead > was) tell(now.at, `${channel}: ${dead - was} more dead`, "bad")
    else tell(now.at, `${channel}: ${was - dead} dead fewer`)
  }
  const alarm = ({ channel, kind }) => `${kind} ${channel}`
  const alarms = new Set(before.alarms.map(alarm))
  for (const one of now.alarms) {
    if (!alarms.delete(alarm(one))) tell(now.at, `alarm: ${one.channel} is ${one.kind} (${one.count})`, "bad")
  }
  for (const one of alarms) tell(now.at, `no alarm any more: ${one}`, "good")
  const components = byKey(before.health.components, "component")
  for (const { component, detail, status } of now.health.components) {
    if (components.get(component)?.status === status) continue
    tell(now.at, `${component} is ${status}${detail ? `: ${detail}` : ""}`, status)
  }
  if (before.instance === now.instance && now.gaps > before.gaps) {
    tell(now.at, `${now.gaps - before.gaps} gaps: broadcasts may have been missed`, "warn")
  }
  const sync = byKey(before.sync, "channel")
  for (const { channel, resync } of now.sync) {
    const was = sync.get(channel)?.resync ?? null
    if (was === null && resync !== null) tell(now.at, `${channel}: resync`, "warn")
    if (was !== null && resync === null) tell(now.at, `${channel}: in sync again`, "good")
  }
}
