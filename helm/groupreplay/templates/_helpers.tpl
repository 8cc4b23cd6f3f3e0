{{- define "groupreplay.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "groupreplay.selector" -}}
app.kubernetes.io/name: groupreplay
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{- define "groupreplay.labels" -}}
{{ include "groupreplay.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: groupreplay
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* Image of one of our processes: repository with digest, or with tag, or with the version of the chart. */}}
{{- define "groupreplay.image" -}}
{{- if .image.digest -}}
{{ .image.repository }}@{{ .image.digest }}
{{- else -}}
{{ .image.repository }}:{{ .image.tag | default .root.Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{- define "groupreplay.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{ .Values.serviceAccount.name | default (include "groupreplay.fullname" .) }}
{{- else -}}
{{ .Values.serviceAccount.name | default "default" }}
{{- end -}}
{{- end -}}

{{/* What all our Pods have. Kubernetes would put GROUPREPLAY_PORT and the like into the environment, and unknown
     settings are refused: no links. */}}
{{- define "groupreplay.pod" -}}
serviceAccountName: {{ include "groupreplay.serviceAccount" . }}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile:
    type: RuntimeDefault
{{- with .Values.imagePullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "groupreplay.container" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
{{- end -}}

{{- define "groupreplay.tokenSecret" -}}
{{ .Values.tokens.existingSecret | default (printf "%s-admin" (include "groupreplay.fullname" .)) }}
{{- end -}}

{{- define "groupreplay.redisSecret" -}}
{{- if .Values.redis.existingSecret -}}
{{ .Values.redis.existingSecret }}
{{- else if not .Values.redis.url -}}
{{ include "groupreplay.fullname" . }}-redis
{{- end -}}
{{- end -}}

{{- define "groupreplay.tlsSecret" -}}
{{ .Values.tls.existingSecret | default (printf "%s-tls" (include "groupreplay.fullname" .)) }}
{{- end -}}

{{- define "groupreplay.weightsClaim" -}}
{{ .Values.weights.existingClaim | default (printf "%s-weights" (include "groupreplay.fullname" .)) }}
{{- end -}}

{{/* Address for the SDK: one name for all replicas, which it spreads its calls over. */}}
{{- define "groupreplay.address" -}}
dns:///{{ include "groupreplay.fullname" . }}-headless.{{ .Release.Namespace }}.svc:{{ .Values.service.grpcPort }}
{{- end -}}

{{/* Flags, mounts and volumes with which a client logs in: root, tokenSecret, tokenKey. */}}
{{- define "groupreplay.login.args" -}}
{{- if .root.Values.tokens.enabled }}
- --token-file=/run/secrets/groupreplay/token
{{- end }}
{{- if .root.Values.tls.enabled }}
- --ca-file=/run/secrets/tls/ca.crt
{{- if .root.Values.tls.clientCertificates }}
- --cert-file=/run/secrets/tls/tls.crt
- --key-file=/run/secrets/tls/tls.key
{{- end }}
{{- end }}
{{- end -}}

{{- define "groupreplay.login.mounts" -}}
{{- if .root.Values.tokens.enabled }}
- { name: token, mountPath: /run/secrets/groupreplay, readOnly: true }
{{- end }}
{{- if .root.Values.tls.enabled }}
- { name: tls, mountPath: /run/secrets/tls, readOnly: true }
{{- end }}
{{- end -}}

{{- define "groupreplay.login.volumes" -}}
{{- if .root.Values.tokens.enabled }}
- name: token
  secret:
    secretName: {{ .tokenSecret | default (include "groupreplay.tokenSecret" .root) }}
    defaultMode: 0440
    items:
      - { key: {{ if .tokenSecret }}{{ .tokenKey }}{{ else }}{{ .root.Values.tokens.adminKey }}{{ end }}, path: token }
{{- end }}
{{- if .root.Values.tls.enabled }}
- name: tls
  secret:
    secretName: {{ include "groupreplay.tlsSecret" .root }}
    defaultMode: 0440
    {{- if not .root.Values.tls.clientCertificates }}
    items:
      - { key: ca.crt, path: ca.crt }
    {{- end }}
{{- end }}
{{- end -}}

{{/* Flags, variables, mounts and volumes with which a process sends its traces. */}}
{{- define "groupreplay.tracing.args" -}}
{{- if .Values.tracing.endpoint }}
- --trace.endpoint={{ .Values.tracing.endpoint }}
- --trace.ratio={{ .Values.tracing.ratio }}
{{- end }}
{{- end -}}

{{- define "groupreplay.tracing.env" -}}
{{- $tracing := .Values.tracing }}
{{- if $tracing.endpoint }}
{{- with $tracing.resourceAttributes }}
- { name: OTEL_RESOURCE_ATTRIBUTES, value: {{ . | quote }} }
{{- end }}
{{- with $tracing.headersSecret }}
- name: OTEL_EXPORTER_OTLP_HEADERS
  valueFrom:
    secretKeyRef: { name: {{ . }}, key: {{ $tracing.headersKey }} }
{{- end }}
{{- if $tracing.tls.existingSecret }}
- { name: OTEL_EXPORTER_OTLP_CERTIFICATE, value: /run/secrets/otlp/ca.crt }
{{- if $tracing.tls.clientCertificate }}
- { name: OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE, value: /run/secrets/otlp/tls.crt }
- { name: OTEL_EXPORTER_OTLP_CLIENT_KEY, value: /run/secrets/otlp/tls.key }
{{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "groupreplay.tracing.mounts" -}}
{{- if and .Values.tracing.endpoint .Values.tracing.tls.existingSecret }}
- { name: otlp, mountPath: /run/secrets/otlp, readOnly: true }
{{- end }}
{{- end -}}

{{- define "groupreplay.tracing.volumes" -}}
{{- $tls := .Values.tracing.tls }}
{{- if and .Values.tracing.endpoint $tls.existingSecret }}
- name: otlp
  secret:
    secretName: {{ $tls.existingSecret }}
    defaultMode: 0440
    {{- if not $tls.clientCertificate }}
    items:
      - { key: ca.crt, path: ca.crt }
    {{- end }}
{{- end }}
{{- end -}}
