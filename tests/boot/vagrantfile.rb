# What Vagrant itself reads from a Vagrantfile, as JSON: ruby vagrantfile.rb FOLDER
#
#   [{"name": …, "addresses": [on private networks], "folders": {host: guest}, "scripts": [[path, argument, …], …]}, …]

require "json"
require "vagrant"

environment = Vagrant::Environment.new(cwd: ARGV.fetch(0))
machines = environment.machine_names.map do |name|
  vm = environment.vagrantfile.machine_config(name, nil, nil)[:config].vm
  folders = vm.synced_folders.values.reject { |folder| folder[:disabled] }
  {
    name: name,
    addresses: vm.networks.filter_map { |kind, options| options[:ip] if kind == :private_network },
    folders: folders.to_h { |folder| folder.values_at(:hostpath, :guestpath) },
    scripts: vm.provisioners.map { |provisioner| [provisioner.config.path, *provisioner.config.args] },
  }
end
puts JSON.generate(machines)
