// Form fields and their error messages.

export const element = (id) => document.getElementById(id);

/** Show an error at a field, in the element `<field id>-error`, and focus the field. */
export function tell(field, message) {
  const line = element(`${field.id}-error`);
  line.textContent = message;
  line.hidden = false;
  field.setAttribute("aria-invalid", "true");
  field.focus();
}

/** Clear all errors inside an element. */
export function forgive(inside) {
  for (const line of inside.querySelectorAll(".error")) line.hidden = true;
  for (const field of inside.querySelectorAll("[aria-invalid]")) field.removeAttribute("aria-invalid");
}

/** Show or hide a button; if a focused button is hidden, focus `next`. */
export function show(button, isShown, next) {
  const wasFocused = document.activeElement === button;
  button.hidden = !isShown;
  if (wasFocused && !isShown) next.focus();
}

/** Enable or disable a button; if a focused button is disabled, focus `next`. */
export function enable(button, isEnabled, next) {
  if (!isEnabled && document.activeElement === button) next.focus();
  button.disabled = !isEnabled;
}
